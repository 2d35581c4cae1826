"""Everything that a demo starts from, as files: the tiny model, images, questions, what to warm up on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from uni_dpo.demo import digits, scenes
from uni_dpo.demo.scene_judges import JUDGE_CORPUS, Rows, judge_rows, ranked_rows
from uni_dpo.demo.tiny_model import CORPUS, IMAGE_SIDE, write_tiny_qwen2_vl
from uni_dpo.errors import UniDPOError
from uni_dpo.storage import read_json
from uni_dpo.storage.writing import write_text

Task = Literal["digits", "scenes"]
Pictures = Mapping[str, Sequence[digits.Digit]] | Mapping[str, Sequence[scenes.Scene]]
QUESTION_FILES = {"preference": "questions", "validation": "validation", "held_out": "test"}
"""Split → the file of its questions."""
LEARNT = {"columns": {"prompt": "instruction", "response": "output", "images": "images"}}
RANKED = {
    "ranking": True,
    "columns": {name: name for name in ("chosen", "rejected", "images")} | {"prompt": "instruction"},
}
"""How LlamaFactory reads the datasets."""


def write_task(task: Task, folder: str | Path, *, seed: int = 0) -> Path:
    """Write a task and the tiny model that learns it to `folder`, unless they are there, and return it.

    `model/` is a Qwen2-VL of random weights; `questions`, `validation` and `test.jsonl` are questions about different
    images; `warm_up.json` with `dataset_info.json` is what an SFT learns from. Of the digits, `digits_mcq.tsv` and
    `digits_vqa.tsv` are the test images as benchmarks of VLMEvalKit's. Of the scenes, `judge.json` is what
    `judge_model/`, of three layers, learns from to check claims; from `ranked.json` a reward model learns.

    Args:
        task: which digit is written here, or a description of several claims (`scenes`).
        seed: of the splits, the weights and whatever is drawn.

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
        drawn = scenes.write_scenes(folder / "images", side=IMAGE_SIDE, seed=seed)
        judge, ranked = judge_rows(drawn["train"], seed=seed), ranked_rows(drawn["train"], seed=seed)
        _write(drawn, scenes.QUESTION, folder, judge=judge, ranked=ranked)
        write_tiny_qwen2_vl(folder / "judge_model", seed=seed, corpus=JUDGE_CORPUS, spread=scenes.SPREAD, layers=3)
    beginning = {"corpus": CORPUS} if task == "digits" else {"corpus": scenes.CORPUS, "spread": scenes.SPREAD}
    write_tiny_qwen2_vl(folder / "model", seed=seed, **beginning)
    write_text(mark, json.dumps(made))
    return folder


def _write(pictures: Pictures, question: str, folder: Path, **further: Rows) -> None:
    """The questions of each split, what the SFT learns from, and further datasets."""
    for split, name in QUESTION_FILES.items():
        rows = [
            {"id": one.image.stem, "question": question, "images": [str(one.image)], "answer": one.answer}
            for one in pictures[split]
        ]
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    asked = f"<image>{question}"
    learnt = [{"instruction": asked, "output": one.answer, "images": [str(one.image)]} for one in pictures["train"]]
    entries = {}
    for name, rows in {"warm_up": learnt, **further}.items():
        write_text(folder / f"{name}.json", json.dumps(rows, indent=1))
        entries[name] = {"file_name": f"{name}.json", **(RANKED if "chosen" in rows[0] else LEARNT)}
    write_text(folder / "dataset_info.json", json.dumps(entries, indent=1))
