"""The tables of `gain.py`, computed from its rows: settings that the search chose, and what every method gained."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

UNI_DPO, DPO = "Uni-DPO", "DPO"
START, TWICE, TWO_ROUNDS = "start", "Uni-DPO, twice the pairs and steps", "Uni-DPO, two rounds"
ALIKE = "Uni-DPO with η = 0"
"""As `… without quality`, with the other settings of Uni-DPO."""
SHOWN = {"digits": "images answered right", "scenes": "pictures, claims right (F1)"}
"""Task → what its figures are."""
RESAMPLES = 10_000
Right = Mapping[int, np.ndarray]
"""Seed → how right the answer to each test question is, from 0 to 1."""


def best_settings(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, float, int]]:
    """Return method → the settings with the highest mean on validation, that mean in per cent, and how many were tried.

    Of equal ones the first that ran counts. Settings that lack a seed which others have are left out.
    """
    tried: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if "validation" in row:
            tried.setdefault(row["method"], {}).setdefault(row["settings"], []).append(100 * row["validation"])
    best = {}
    for method, found in tried.items():
        most = max(map(len, found.values()))
        means = {settings: sum(shares) / most for settings, shares in found.items() if len(shares) == most}
        settings = max(means, key=lambda name: means[name])
        best[method] = (settings, means[settings], len(found))
    return best


def right_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """Return kind of scores → method → seed → how right each test question is; of a method that ran twice the last."""
    right: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for row in rows:
        if "right" in row:
            flags = np.array([float(one) for one in row["right"]])
            right.setdefault(row["condition"], {}).setdefault(row["method"], {})[row["seed"]] = flags
    return right


def difference(ours: Right, theirs: Right, *, seed: int = 0) -> tuple[float, float, float]:
    """Return mean of ours − theirs in points, and the ends of its 95 % interval.

    A paired bootstrap over seeds and over questions at once: both are drawn with replacement, and all methods of a seed
    start from the same model, pairs and questions.

    Args:
        ours, theirs: share at least one seed; only shared ones count.
        seed: of the bootstrap.
    """
    shared = sorted(ours.keys() & theirs.keys())
    gaps = 100 * np.stack([ours[key] - theirs[key] for key in shared])  # (seeds, questions)
    by_seed, by_question = _weights(*gaps.shape, seed)
    means = ((by_question @ gaps.T) * by_seed).sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(gaps.mean()), float(low), float(high)


@lru_cache
def _weights(seeds: int, questions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How much each seed and each question counts in each resample: (resamples, seeds) and (resamples, questions)."""
    draw = np.random.default_rng(seed)
    by_seed = draw.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    return by_seed, draw.multinomial(questions, np.full(questions, 1 / questions), size=RESAMPLES) / questions


def summary(right: Mapping[str, Right], start: Right) -> list[tuple[str, ...]]:
    """Return a line per method: name, seeds, mean, worst seed, and differences to the start, DPO and Uni-DPO."""
    lines = []
    for method, found in right.items():
        shares = [100 * float(flags.mean()) for flags in found.values()]
        others = {"": start, DPO: right.get(DPO, {}), UNI_DPO: right.get(UNI_DPO, {})}
        against = [
            "" if method == name or not (found.keys() & other.keys()) else _points(difference(found, other))
            for name, other in others.items()
        ]
        lines.append((method, str(len(found)), f"{np.mean(shares):.1f}", f"{min(shares):.1f}", *against))
    return lines


def _points(found: tuple[float, float, float]) -> str:
    middle, low, high = found
    return f"{middle:+.1f} ({low:+.1f} … {high:+.1f})"


def print_tables(rows: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print what the search chose, and one table for each kind of scores; the rows are of one task."""
    rows = list(rows)
    shown = SHOWN[next((row["task"] for row in rows if "task" in row), "digits")]  # the oldest rows name no task
    table = Table("method", "tried", "right", "settings", title=f"the search: validation {shown}, in per cent")
    for method, (settings, share, count) in best_settings(rows).items():
        table.add_row(method, str(count), f"{share:.1f}", settings)
    console.print(table)
    found = right_of(rows)
    start = found.get("clean", {}).pop(START, {})
    if start:
        shares = ", ".join(f"{100 * flags.mean():.1f}" for _, flags in sorted(start.items()))
        console.print(f"before, by seed: {shares}")
    for condition, right in found.items():
        names = ("method", "seeds", "right", "worst seed", "gain", "against DPO", "against Uni-DPO")
        table = Table(*names, title=f"{condition}: test {shown}, in per cent")
        for line in summary(right, start):
            table.add_row(*line)
        console.print(table)
