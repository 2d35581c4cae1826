"""The vision alignment recipes' data at a small size: handwritten digits in LLaVA's layouts, and a random tiny model.

    python examples/vision_alignment/prepare_tiny.py outputs/vision_alignment

writes below the folder
    model/               a Qwen2-VL of 0.7 million parameters that has learnt nothing yet
    images/              the digits
    llava/sft.json       one right answer each, for supervised fine-tuning
    llava/ranked.json    lists of two or three answers, best first: the right digit, a wrong one, none
    prompts.jsonl        those lists' images with questions and right answers, for `uni-dpo ppo` and `uni-dpo grpo`
    llava/held_out.json  the right digit and a wrong one, over images that no training sees
    questions.jsonl      those images' questions and right answers, for `uni-dpo predict`
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uni_dpo.cli import run
from uni_dpo.data.tables.writing import write_rows
from uni_dpo.demo.digits import QUESTION, Digit, answer, write_digits
from uni_dpo.demo.tiny_model import IMAGE_SIDE, write_tiny_qwen2_vl
from uni_dpo.storage.writing import write_text

EVASION = "No digit is written here."
LISTS = 6
"""Lists per training image, each with another wrong digit: with few, the pairs are easier to remember than to judge."""


def prepare(folder: Path, *, seed: int = 0) -> None:
    """Write the model, the images and the files."""
    draw = random.Random(seed)
    _without_value_dropout(write_tiny_qwen2_vl(folder / "model", seed=seed))
    splits = write_digits(folder / "images", side=IMAGE_SIDE, seed=seed)
    _write(folder / "llava" / "sft.json", [_row(digit, digit.answer) for digit in splits["train"]])
    lists = [_row(digit, said) for digit in splits["preference"] for said in ranked(digit, LISTS, draw)]
    _write(folder / "llava" / "ranked.json", lists)
    held_out = [_row(digit, ranked(digit, 1, draw)[0][:2]) for digit in splits["held_out"]]
    _write(folder / "llava" / "held_out.json", held_out)
    write_rows(folder / "prompts.jsonl", map(_question, splits["preference"]))
    write_rows(folder / "questions.jsonl", map(_question, splits["held_out"]))


def ranked(digit: Digit, lists: int, draw: random.Random) -> list[list[str]]:
    """Lists of the right answer and a drawn wrong one; in a tenth of them a third answer evades the question."""
    wrong = draw.sample([label for label in range(10) if label != digit.label], lists)
    return [[digit.answer, answer(label), *([EVASION] if draw.random() < 0.1 else [])] for label in wrong]


def _without_value_dropout(model: Path) -> None:
    """Switch off the dropout before a reward model's value head, which LlamaFactory takes from the checkpoint.

    TRL's default of 0.1 is more noise than 128 numbers can bear: the ranking loss then stays at log 2.
    """
    file = model / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    write_text(file, json.dumps(config | {"summary_dropout_prob": 0.0}, indent=2))


def _question(digit: Digit) -> dict[str, Any]:
    image = str(digit.image.resolve())
    return {"id": digit.image.stem, "question": QUESTION, "answer": digit.answer, "images": [image]}


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
    run(lambda: prepare(given.folder, seed=given.seed))
