"""The vision alignment recipes' data at a small size: handwritten digits in LLaVA's layouts, and a random tiny model.

    python examples/vision_alignment/prepare_tiny.py outputs/vision_alignment

writes below the folder
    model/               a Qwen2-VL of 0.7 million parameters that has learnt nothing yet
    images/              the digits
    llava/sft.json       one right answer each, for supervised fine-tuning
    llava/ranked.json    lists of two or three answers, best first: the right digit, a wrong one, none
    llava/held_out.json  the same over images that no training sees
    questions.jsonl      those images' questions and right answers, for `uni-dpo predict`
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uni_dpo.demo.digits import QUESTION, Digit, answer, write_digits
from uni_dpo.demo.tiny_model import IMAGE_SIDE, write_tiny_qwen2_vl
from uni_dpo.files import write_text
from uni_dpo.preferences.writing import write_rows

EVASION = "No digit is written here."
LISTS = 3
"""Lists per training image: with one only, the words' luck is easier to learn than the images."""


def prepare(folder: Path, *, seed: int = 0) -> None:
    """Write the model, the images and the files."""
    draw = random.Random(seed)
    write_tiny_qwen2_vl(folder / "model", seed=seed)
    splits = write_digits(folder / "images", side=IMAGE_SIDE, seed=seed)
    _write(folder / "llava" / "sft.json", [_row(digit, digit.answer) for digit in splits["train"]])
    _write(
        folder / "llava" / "ranked.json", [_row(digit, ranked(digit, draw)) for digit in splits["preference"] * LISTS]
    )
    _write(folder / "llava" / "held_out.json", [_row(digit, ranked(digit, draw)) for digit in splits["held_out"]])
    questions = (
        {"id": digit.image.stem, "question": QUESTION, "answer": digit.answer, "images": [str(digit.image.resolve())]}
        for digit in splits["held_out"]
    )
    write_rows(folder / "questions.jsonl", questions)


def ranked(digit: Digit, draw: random.Random) -> list[str]:
    """The right answer and a drawn wrong one; in a quarter of the lists a third one evades the question."""
    wrong = draw.choice([label for label in range(10) if label != digit.label])
    evasion = [EVASION] if draw.random() < 0.25 else []
    return [digit.answer, answer(wrong), *evasion]


def _row(digit: Digit, said: str | list[str]) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>{QUESTION}"}, {"from": "gpt", "value": said}]
    return {"id": digit.image.stem, "image": str(digit.image.resolve()), "conversations": turns}


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, json.dumps(rows, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    prepare(given.folder, seed=given.seed)
