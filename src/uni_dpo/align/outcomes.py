"""What a model got on questions: a grade for each, from the file that `predict` or the engine wrote."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from uni_dpo.errors import UniDPOError
from uni_dpo.storage.rowlog import log_lines
from uni_dpo.vlmeval.bootstrap import Outcomes, difference_interval


def read_grades(path: Path, by: Literal["answers", "score"]) -> dict[str, float]:
    """Question id → grade (0 … 1), or the pipeline's score.

    Args:
        path: without its ending: `predict` wrote PATH.jsonl, the engine the folder PATH.
        by: which of them.

    Raises:
        UniDPOError: nothing in it is graded.
    """
    if by == "answers":
        file = path.with_name(f"{path.name}.jsonl")
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        grades = {str(row["id"]): float(row["correct"]) for row in rows if "correct" in row}
        advice = "give the questions a column `answer`, or set evaluate.by: score"
    else:
        file = path / "1-reward.jsonl"
        scored = {row["id"]: row for row, _ in log_lines(file) if row is not None and row.get("answers")}
        grades = {str(key): float(row["answers"][0]["score"]) for key, row in scored.items()}
        advice = "look at its log"
    if not grades:
        raise UniDPOError(f"{file}: no question in it has a grade; {advice}")
    return grades


def gain(
    before: Mapping[str, float], after: Mapping[str, float], *, unit: float, seed: int
) -> tuple[float, tuple[float, float], int]:
    """Mean of `after` − `before` over the questions that both have, its 95 % interval, and their number.

    Args:
        before, after: question id → grade.
        unit: what grades are multiplied by.
        seed: of the bootstrap.

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
    """The mean grade, times `unit`."""
    return unit * sum(grades.values()) / len(grades)
