"""What a ledger says: over time, how each quantity was distributed over the pairs; and what became of each pair.

Windows of steps give the first; rules that are written down the second: learnt, forgotten, suspect.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
QUANTITIES = (
    "reward_margin",
    "policy_margin",
    "policy_chosen",
    "policy_rejected",
    "chosen_drift",
    "rejected_drift",
    "score_margin",
    "score_chosen",
    "w_qual",
    "w_perf",
    "nll_active",
    "loss",
    "length_gap",
    "tokens_chosen",
    "tokens_rejected",
)
"""What windows speak of. `reward_margin` is Δ_π − Δ_ref, and Δ_π for losses without a reference; `chosen_drift` is
logπ(y_w) − logπ_ref(y_w); `length_gap` is tokens of y_w minus tokens of y_l."""


def quantities(rows: pa.Table) -> dict[str, np.ndarray]:
    """Return `step`, `epoch` and `QUANTITIES` of a ledger's rows, float64, NaN where a loss does not have them."""
    names = [name for name in rows.column_names if name not in ("split", "pair")]
    found = {name: np.asarray(rows[name].to_numpy(), dtype=np.float64) for name in names}
    has_reference = np.isfinite(found["reference_margin"])
    found["reward_margin"] = found["policy_margin"] - np.where(has_reference, found["reference_margin"], 0.0)
    for side in ("chosen", "rejected"):
        found[f"{side}_drift"] = found[f"policy_{side}"] - found[f"reference_{side}"]
    found["score_margin"] = found["score_chosen"] - found["score_rejected"]
    found["length_gap"] = found["tokens_chosen"] - found["tokens_rejected"]
    return {name: found[name] for name in ("step", "epoch", *QUANTITIES)}


def _of_split(rows: pa.Table, split: str) -> pa.Table:
    return rows.filter(pa.compute.equal(rows["split"].cast(pa.string()), split))


def windows(rows: pa.Table, split: str = "train", count: int = 48) -> list[dict[str, Any]]:
    """Return the distributions of `QUANTITIES` over a split of a ledger, in `count` windows of about as many steps.

    Returns:
        For each its last `step`, its `pairs`, `accuracy` (the share of pairs whose reward margin is above 0),
        and for each quantity that is there a dict of `mean` and the `QUANTILES` as `q`.
    """
    values = quantities(_of_split(rows, split))
    steps = np.unique(values["step"])
    if not len(steps):
        return []
    found = []
    for part in np.array_split(steps, min(count, len(steps))):
        inside = (values["step"] >= part[0]) & (values["step"] <= part[-1])
        within = {name: column[inside] for name, column in values.items()}
        found.append({"step": int(part[-1]), "pairs": int(inside.sum()), **_window(within)})
    return found


def _window(values: dict[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {"accuracy": float((values["reward_margin"] > 0).mean())}
    for name in QUANTITIES:
        finite = values[name][np.isfinite(values[name])]
        if len(finite):
            found[name] = {"mean": float(finite.mean()), "q": np.quantile(finite, QUANTILES).tolist()}
    return found | {"chosen_longer": float((values["length_gap"] > 0).mean())}


LEARNT, STILL, NEVER, FORGOTTEN = "learnt", "still to learn", "never learnt", "forgotten"
SUSPECT_LABEL, SUSPECT_LENGTH = "suspect label", "suspect length"
GROUPS = (LEARNT, STILL, NEVER, FORGOTTEN, SUSPECT_LABEL, SUSPECT_LENGTH)
"""The first four exclude each other; a pair may be suspect beside. `verdicts.GROUP_RULES` says what each means."""


@dataclass(frozen=True)
class PairHistory:
    """Every visit of every pair.

    Attributes:
        pairs: names, (n,).
        visits: how often each was seen, (n,).
        first, last: for each quantity of `quantities` its value at the first and last visit, (n,).
        reward_margins: (n, most visits), NaN behind a pair's last.
        policy_margins: likewise.
    """

    pairs: list[str]
    visits: np.ndarray
    first: dict[str, np.ndarray]
    last: dict[str, np.ndarray]
    reward_margins: np.ndarray
    policy_margins: np.ndarray


def pair_history(rows: pa.Table, split: str = "train") -> PairHistory:
    """Put the rows of a ledger together pair by pair; those of one split count."""
    rows = _of_split(rows, split)
    names = rows["pair"].cast(pa.string()).combine_chunks().dictionary_encode()
    values = quantities(rows)
    codes = names.indices.to_numpy()
    order = np.lexsort((values["step"], codes))
    values = {name: column[order] for name, column in values.items()}
    visits = np.bincount(codes)
    ends = np.cumsum(visits)
    starts = ends - visits
    table = np.full((len(visits), int(visits.max(initial=0))), np.nan)
    seen = np.arange(table.shape[1]) < visits[:, None]
    margins = {}
    for name in ("reward_margin", "policy_margin"):
        margins[f"{name}s"] = table.copy()
        margins[f"{name}s"][seen] = values[name]
    return PairHistory(
        pairs=names.dictionary.to_pylist(),
        visits=visits,
        first={name: column[starts] for name, column in values.items()},
        last={name: column[ends - 1] for name, column in values.items()},
        **margins,
    )


def group_pairs(history: PairHistory) -> dict[str, np.ndarray]:
    """Tell which pairs are in each of `GROUPS`, by `verdicts.GROUP_RULES`: booleans of shape (n,)."""
    margins, visits = history.reward_margins, history.visits
    last, first = history.last["reward_margin"], history.first["reward_margin"]
    ever, learnt = (margins > 0).any(1), last > 0
    still = ~learnt & ~ever & ((visits == 1) | (last > first))
    return {
        LEARNT: learnt,
        STILL: still,
        NEVER: ~learnt & ~ever & ~still,
        FORGOTTEN: ever & ~learnt,
        SUSPECT_LABEL: _suspect_label(history),
        SUSPECT_LENGTH: _suspect_length(history),
    }


def count_groups(history: PairHistory) -> dict[str, int]:
    """Count the pairs in each of `GROUPS`."""
    return {name: int(members.sum()) for name, members in group_pairs(history).items()}


def _suspect_label(history: PairHistory) -> np.ndarray:
    margins = history.policy_margins
    if not margins.size:
        return np.zeros(0, bool)
    firm = np.nanmedian(np.abs(margins))
    return (np.where(np.isnan(margins), -1.0, margins) < 0).all(1) & (np.nanmean(margins, 1) < -firm)


def _suspect_length(history: PairHistory) -> np.ndarray:
    chosen, rejected = history.last["tokens_chosen"], history.last["tokens_rejected"]
    gap = np.abs(history.last["score_margin"])
    if not np.isfinite(gap).any():
        return np.zeros(len(gap), bool)
    return (np.maximum(chosen, rejected) > 2 * np.minimum(chosen, rejected)) & (gap <= np.nanmedian(gap))
