"""A small configuration over real questions; no stage of it is run unless a test does so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import QUESTION, Digit

Make = Callable[..., dict[str, Any]]


def write_questions(path: Path, digits: list[Digit]) -> Path:
    rows = [
        {"id": digit.image.stem, "question": QUESTION, "images": [str(digit.image)], "answer": digit.answer}
        for digit in digits
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def settings(tmp_path: Path, tiny_qwen2_vl: Path, digits: dict[str, list[Digit]]) -> Make:
    """The mapping of a configuration; keywords take the place of its keys."""
    files = {
        name: str(write_questions(tmp_path / f"{name}.jsonl", digits[split][:count]))
        for name, split, count in (
            ("questions", "preference", 12),
            ("validation", "validation", 6),
            ("test", "held_out", 6),
        )
    }
    raw = {
        "model": str(tiny_qwen2_vl),
        "work_dir": str(tmp_path / "work"),
        **files,
        "engine": {"pipeline": "verifiable", "sample": {"n": 4}},
        "train": {"finetuning_type": "full"},
    }
    return lambda **changed: {**raw, **changed}
