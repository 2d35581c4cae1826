"""What a training did to its pairs, from its ledger: how many moved apart the right way, which most and which least."""

from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from uni_dpo.ledger.reading import read_ledger, read_texts

SHOWN = 3


def pairs_learnt(output: Path) -> dict[str, Any]:
    """Return counts, and the pairs whose margin log π(chosen) − log π(rejected) grew most and fell most.

    A pair's margin at its last visit is compared with the reference's, or where the loss has no reference with its own
    at the first visit.

    Args:
        output: the training's output folder.

    Returns:
        `pairs`, `apart` (how many margins grew), `most` and `least` (pair, change in nats, question, chosen, rejected);
        nothing where no ledger was kept.
    """
    rows = read_ledger(output)
    rows = rows.filter(pc.equal(pc.cast(rows["split"], "string"), "train"))
    changes: dict[str, tuple[float, float]] = {}
    columns = ("pair", "policy_margin", "reference_margin")
    for pair, policy, reference in zip(*(rows[name].to_pylist() for name in columns), strict=True):
        if policy is not None:
            base = changes[pair][0] if pair in changes else policy
            changes[pair] = (base if reference is None else reference, policy)
    if not changes:
        return {}
    grown = sorted(((after - before, pair) for pair, (before, after) in changes.items()), reverse=True)
    texts = {row["pair"]: row for row in read_texts(output).to_pylist()}
    return {
        "pairs": len(grown),
        "apart": sum(change > 0 for change, _ in grown),
        "most": [_shown(change, pair, texts) for change, pair in grown[:SHOWN]],
        "least": [_shown(change, pair, texts) for change, pair in reversed(grown[-SHOWN:])],
    }


def _shown(change: float, pair: str, texts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = texts.get(pair, {})
    return {"pair": pair, "change": change, **{name: row.get(name) for name in ("question", "chosen", "rejected")}}
