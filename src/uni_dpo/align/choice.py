"""Which checkpoint of a round is the best on the validation questions, and whether a further round is worth it.

A model's outcome is a grade for each question, from the file that `predict` or the engine wrote.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from uni_dpo.errors import UniDPOError
from uni_dpo.report.statistics import Outcomes, difference_interval
from uni_dpo.storage import read_json
from uni_dpo.storage.rowlog import log_lines
from uni_dpo.storage.writing import write_text

GoOn = Literal["better", "surely_better", "always"]


def read_grades(path: Path, by: Literal["answers", "score"]) -> dict[str, float]:
    """Return question id → grade (0 … 1), or the pipeline's score.

    An empty answer, which no pipeline is asked about, gets the lowest score that the file holds.

    Args:
        path: without its ending: `predict` wrote PATH.jsonl, the engine the folder PATH.
        by: which of them.

    Raises:
        UniDPOError: nothing in it is graded, or a question got no reply.
    """
    if by == "answers":
        file = path.with_name(f"{path.name}.jsonl")
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        grades = {str(row["id"]): float(row["correct"]) for row in rows if "correct" in row}
        advice = "give the questions a column `answer`, or set evaluate.by: score"
    else:
        file = path / "1-reward.jsonl"
        grades = _scores(path)
        advice = "look at its log"
    if not grades:
        raise UniDPOError(f"{file}: no question in it has a grade; {advice}")
    return grades


def _scores(folder: Path) -> dict[str, float]:
    # A question that was asked again counts as asked last.
    sampled, scored = (
        {str(row["id"]): row for row, _ in log_lines(folder / name) if row is not None and "id" in row}
        for name in ("0-sample.jsonl", "1-reward.jsonl")
    )
    failed = [str(row["failed"]) for row in (*sampled.values(), *scored.values()) if "failed" in row]
    if failed:
        raise UniDPOError(f"{folder}: {len(failed)} questions got no reply ({failed[0]}); run again to ask them")
    scores = {key: float(row["answers"][0]["score"]) for key, row in scored.items() if row["answers"]}
    lowest = min(scores.values(), default=0.0)
    return {key: scores.get(key, lowest) for key in sampled} if scores else {}


def gain(
    before: Mapping[str, float], after: Mapping[str, float], *, unit: float, seed: int
) -> tuple[float, tuple[float, float], int]:
    """Return mean of `after` − `before` over the questions that both have, its 95 % interval, and their number.

    Grades, by question id, are multiplied by `unit`; `seed` is that of the bootstrap.

    Raises:
        UniDPOError: they share no question.
    """
    import numpy as np

    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise UniDPOError("before and after share no graded question; evaluate both on the same file")
    parts = [
        np.array([[grades[key] * unit / len(shared)] for key in shared], dtype=np.float64) for grades in (before, after)
    ]
    ours, theirs = (Outcomes(shared, part, "sum") for part in parts)
    interval = difference_interval(ours, theirs, seed=seed)
    return theirs.score() - ours.score(), interval, len(shared)


def mean(grades: Mapping[str, float], unit: float) -> float:
    """Return the mean grade, times `unit`."""
    return unit * sum(grades.values()) / len(grades)


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
        before: question id → grade of the model before the round, whose folder is `start`.
        found: candidate → the same, the earliest first; their folders are `paths`.
        go_on: when a round has helped; with `always` its checkpoint is kept whatever it is like.
        seed, unit: as of `gain`.
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
