"""Everything that a demo starts from, as files: the tiny model, images, questions, what to warm up on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from uni_dpo.demo import digits, scenes
from uni_dpo.demo.tiny_model import CORPUS, IMAGE_SIDE, write_tiny_qwen2_vl
from uni_dpo.errors import UniDPOError
from uni_dpo.storage.reading import read_json
from uni_dpo.storage.writing import write_text

Task = Literal["digits", "scenes"]
Pictures = Mapping[str, Sequence[digits.Digit]] | Mapping[str, Sequence[scenes.Scene]]
QUESTION_FILES = {"preference": "questions", "validation": "validation", "held_out": "test"}
"""Split → the file of its questions."""


def write_task(task: Task, folder: str | Path, *, seed: int = 0) -> Path:
    """Write a task and the tiny model that learns it, unless they are there.

    `model/` is a Qwen2-VL of random weights; `questions`, `validation` and `test.jsonl` are questions about different
    images; `warm_up.json` with `dataset_info.json` is what an SFT learns from. Of the digits, `digits_mcq.tsv` and
    `digits_vqa.tsv` are the test images as benchmarks of VLMEvalKit's.

    Args:
        task: which digit is written here, or a description of several claims (`scenes`).
        folder: created if missing.
        seed: of the splits, the weights and whatever is drawn.

    Returns:
        The folder.

    Raises:
        UniDPOError: it holds another task, or one of another seed.
    """
    folder = Path(folder).resolve()
    mark, made = folder / "task.json", {"task": task, "seed": seed}
    if (there := read_json(mark)) and there != made:
        raise UniDPOError(f"{folder} holds the task {there}; name another folder, or delete it")
    if there:
        return folder
    if task == "digits":
        written = digits.write_digits(folder / "images", side=IMAGE_SIDE, seed=seed)
        digits.write_mcq(written["held_out"], folder / "digits_mcq.tsv", seed=seed)
        digits.write_vqa(written["held_out"], folder / "digits_vqa.tsv")
        _write(written, digits.QUESTION, folder)
    else:
        _write(scenes.write_scenes(folder / "images", side=IMAGE_SIDE, seed=seed), scenes.QUESTION, folder)
    beginning = {"corpus": CORPUS} if task == "digits" else {"corpus": scenes.CORPUS, "spread": scenes.SPREAD}
    write_tiny_qwen2_vl(folder / "model", seed=seed, **beginning)
    write_text(mark, json.dumps(made))
    return folder


def _write(pictures: Pictures, question: str, folder: Path) -> None:
    """The questions of each split, and what the SFT learns from."""
    for split, name in QUESTION_FILES.items():
        rows = [
            {"id": one.image.stem, "question": question, "images": [str(one.image)], "answer": one.answer}
            for one in pictures[split]
        ]
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    asked = f"<image>{question}"
    learnt = [{"instruction": asked, "output": one.answer, "images": [str(one.image)]} for one in pictures["train"]]
    write_text(folder / "warm_up.json", json.dumps(learnt, indent=1))
    columns = {"prompt": "instruction", "response": "output", "images": "images"}
    entry = {"warm_up": {"file_name": "warm_up.json", "columns": columns}}
    write_text(folder / "dataset_info.json", json.dumps(entry, indent=1))
