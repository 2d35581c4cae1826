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
    found = {name: _numbers(rows[name]) for name in rows.column_names if name not in ("split", "pair")}
    has_reference = np.isfinite(found["reference_margin"])
    found["reward_margin"] = found["policy_margin"] - np.where(has_reference, found["reference_margin"], 0.0)
    for side in ("chosen", "rejected"):
        found[f"{side}_drift"] = found[f"policy_{side}"] - found[f"reference_{side}"]
    found["score_margin"] = found["score_chosen"] - found["score_rejected"]
    found["length_gap"] = found["tokens_chosen"] - found["tokens_rejected"]
    return {name: found[name] for name in ("step", "epoch", *QUANTITIES)}


def _numbers(column: Any) -> np.ndarray:
    values = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    return np.asarray(values, dtype=np.float64)


def windows(rows: pa.Table, split: str = "train", count: int = 48) -> list[dict[str, Any]]:
    """Return the distributions of `QUANTITIES` in windows of steps, each with about the same number of steps.

    Args:
        rows: a ledger, by step.
        split: whose rows count.
        count: windows at most.

    Returns:
        For each window its last `step`, its `pairs`, `accuracy` (the share of pairs whose reward margin is above 0),
        and for each quantity that is there a dict of `mean` and the `QUANTILES` as `q`.
    """
    rows = rows.filter(pa.compute.equal(rows["split"].cast(pa.string()), split))
    if not len(rows):
        return []
    values = quantities(rows)
    steps = np.unique(values["step"])
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
            spread = [float(value) for value in np.quantile(finite, QUANTILES)]
            found[name] = {"mean": float(finite.mean()), "q": spread}
    longer = values["length_gap"] > 0
    found["chosen_longer"] = float(longer.mean())
    return found


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
    """Put the rows of a ledger together pair by pair.

    Args:
        rows: a ledger, by step.
        split: whose rows count.
    """
    rows = rows.filter(pa.compute.equal(rows["split"].cast(pa.string()), split)).combine_chunks()
    names = rows["pair"].cast(pa.string()).combine_chunks().dictionary_encode()
    values = quantities(rows)
    codes = names.indices.to_numpy(zero_copy_only=False) if len(rows) else np.zeros(0, np.int64)
    order = np.lexsort((values["step"], codes))
    codes = codes[order]
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]]) if len(codes) else np.zeros(0, np.int64)
    visits = np.diff(np.r_[starts, len(codes)])
    sorted_values = {name: column[order] for name, column in values.items()}
    tables = {}
    for name in ("reward_margin", "policy_margin"):
        table = np.full((len(starts), int(visits.max(initial=0))), np.nan)
        for pair, (start, count) in enumerate(zip(starts, visits, strict=True)):
            table[pair, :count] = sorted_values[name][start : start + count]
        tables[name] = table
    return PairHistory(
        pairs=[names.dictionary[int(code)].as_py() for code in codes[starts]],
        visits=visits,
        first={name: column[starts] for name, column in sorted_values.items()},
        last={name: column[starts + visits - 1] for name, column in sorted_values.items()},
        reward_margins=tables["reward_margin"],
        policy_margins=tables["policy_margin"],
    )


def group_pairs(history: PairHistory) -> dict[str, np.ndarray]:
    """Tell which pairs are in each of `GROUPS`, by `verdicts.GROUP_RULES`: booleans of shape (n,)."""
    margins, visits = history.reward_margins, history.visits
    last, first = history.last["reward_margin"], history.first["reward_margin"]
    ever = (margins > 0).any(1) if margins.size else np.zeros(len(visits), bool)
    learnt = last > 0
    forgotten = ever & ~learnt
    still = ~learnt & ~ever & ((visits == 1) | (last > first))
    return {
        LEARNT: learnt,
        STILL: still,
        NEVER: ~learnt & ~ever & ~still,
        FORGOTTEN: forgotten,
        SUSPECT_LABEL: _suspect_label(history),
        SUSPECT_LENGTH: _suspect_length(history),
    }


def _suspect_label(history: PairHistory) -> np.ndarray:
    margins = history.policy_margins
    if not margins.size:
        return np.zeros(len(history.visits), bool)
    firm = np.nanmedian(np.abs(margins))
    return (np.where(np.isnan(margins), -1.0, margins) < 0).all(1) & (np.nanmean(margins, 1) < -firm)


def _suspect_length(history: PairHistory) -> np.ndarray:
    chosen, rejected = history.last["tokens_chosen"], history.last["tokens_rejected"]
    gap = np.abs(history.last["score_margin"])
    if not np.isfinite(gap).any():
        return np.zeros(len(gap), bool)
    return (np.maximum(chosen, rejected) > 2 * np.minimum(chosen, rejected)) & (gap <= np.nanmedian(gap))
