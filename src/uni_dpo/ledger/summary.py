"""What a ledger says over time: for windows of steps, how each quantity was distributed over the pairs."""

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
