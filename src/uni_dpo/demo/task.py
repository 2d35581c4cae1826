"""Everything that a demo starts from, as files: the tiny model, images, questions, what to warm up on."""

import json
from collections.abc import Sequence
from pathlib import Path

from uni_dpo.demo.digits import QUESTION, Digit, write_digits, write_mcq, write_vqa
from uni_dpo.demo.tiny_model import IMAGE_SIDE, write_tiny_qwen2_vl
from uni_dpo.errors import UniDPOError
from uni_dpo.models.checkpoint import read_json
from uni_dpo.storage.writing import write_text

QUESTION_FILES = {"preference": "questions", "validation": "validation", "held_out": "test"}
"""Split → the file of its questions."""


def write_digits_task(folder: str | Path, *, seed: int = 0) -> Path:
    """Write the task `digits`, unless it is there.

    `model/` is a Qwen2-VL of random weights; `questions`, `validation` and `test.jsonl` are questions about different
    images; `warm_up.json` with `dataset_info.json` is what an SFT learns from; `digits_mcq.tsv` and `digits_vqa.tsv`
    are the test images as benchmarks of VLMEvalKit's.

    Args:
        folder: created if missing.
        seed: of the splits, the weights and the options.

    Returns:
        The folder.

    Raises:
        UniDPOError: it holds the task of another seed.
    """
    folder = Path(folder).resolve()
    mark, made = folder / "task.json", {"task": "digits", "seed": seed}
    if (there := read_json(mark)) and there != made:
        raise UniDPOError(f"{folder} holds the task {there}; name another folder, or delete it")
    if there:
        return folder
    write_tiny_qwen2_vl(folder / "model", seed=seed)
    digits = write_digits(folder / "images", side=IMAGE_SIDE, seed=seed)
    for split, name in QUESTION_FILES.items():
        _write_questions(folder / f"{name}.jsonl", digits[split])
    rows = [
        {"instruction": f"<image>{QUESTION}", "output": d.answer, "images": [str(d.image)]} for d in digits["train"]
    ]
    write_text(folder / "warm_up.json", json.dumps(rows, indent=1))
    columns = {"prompt": "instruction", "response": "output", "images": "images"}
    entry = {"warm_up": {"file_name": "warm_up.json", "columns": columns}}
    write_text(folder / "dataset_info.json", json.dumps(entry, indent=1))
    write_mcq(digits["held_out"], folder / "digits_mcq.tsv", seed=seed)
    write_vqa(digits["held_out"], folder / "digits_vqa.tsv")
    write_text(mark, json.dumps(made))
    return folder


def _write_questions(path: Path, digits: Sequence[Digit]) -> None:
    rows = [{"id": d.image.stem, "question": QUESTION, "images": [str(d.image)], "answer": d.answer} for d in digits]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
