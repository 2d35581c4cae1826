"""Which checkpoint of a round is the best on the validation questions, and whether a further round is worth it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from uni_dpo.align.outcomes import gain, mean
from uni_dpo.storage.reading import read_json
from uni_dpo.storage.writing import write_text

GoOn = Literal["better", "surely_better", "always"]


@dataclass(frozen=True)
class Choice:
    """The outcome of a round on the validation questions.

    Attributes:
        candidate: the best checkpoint's name; of equal ones the earliest.
        model: the folder of the model that goes on from here: that checkpoint, or the model before the round.
        before: mean of the model before the round.
        means: candidate → mean.
        gain: of the best over the model before.
        low, high: ends of the 95 % interval of `gain` (paired bootstrap). The best of several is a little flattered.
        questions: how many were graded for both.
        kept: whether the round's checkpoint is kept.
        goes_on: whether a further round is worth it.
        reason: why, in a sentence.
    """

    candidate: str
    model: str
    before: float
    means: dict[str, float]
    gain: float
    low: float
    high: float
    questions: int
    kept: bool
    goes_on: bool
    reason: str


def choose(
    before: Mapping[str, float],
    found: Mapping[str, Mapping[str, float]],
    paths: Mapping[str, str],
    start: str,
    *,
    go_on: GoOn,
    seed: int,
    unit: float,
) -> Choice:
    """Take the best candidate, and say whether the round helped.

    Args:
        before: question id → grade of the model before the round.
        found: candidate → the same, the earliest first.
        paths: candidate → folder.
        start: folder of the model before the round.
        go_on: when a round has helped; with `always` its checkpoint is kept whatever it is like.
        seed: of the bootstrap.
        unit: what grades are multiplied by.
    """
    means = {name: mean(grades, unit) for name, grades in found.items()}
    candidate = max(means, key=lambda name: means[name])
    difference, (low, high), count = gain(before, found[candidate], unit=unit, seed=seed)
    better = difference > 0 or go_on == "always"
    helped = better and (go_on != "surely_better" or low > 0)
    sign = f"{difference:+.2f} on {count:,} validation questions (95 % interval {low:+.2f} … {high:+.2f})"
    if not better:
        reason = f"this round did not help: {sign}; the model before it is kept and no further round follows"
    elif not helped:
        reason = f"it is not sure that this round helped: {sign}; its model is kept and no further round follows"
    else:
        reason = f"this round's best is {candidate}: {sign}"
    return Choice(
        candidate, paths[candidate] if better else start, mean(before, unit), means, difference, low, high, count,
        better, helped, reason,
    )  # fmt: skip


def write_choice(path: Path, choice: Choice) -> None:
    """Write it as JSON."""
    write_text(path, json.dumps(asdict(choice), indent=1) + "\n")


def read_choice(path: Path) -> Choice | None:
    """Undo `write_choice`: read what it wrote; None where nothing is chosen yet."""
    return Choice(**read_json(path)) if path.is_file() else None
