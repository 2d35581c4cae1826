"""The demo's steps, each from files to files."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uni_dpo.demo.digits import QUESTION, WORDS, Digit, answer
from uni_dpo.demo.settings import SHARED, DemoSettings
from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl
from uni_dpo.demo.training import printing_to, train
from uni_dpo.engine import Question, run_engine
from uni_dpo.storage.writing import write_text

WORST_TO_BEST = (0.0, 5.0)
"""The scale of the scores: τ_good 2.5 lies between every wrong answer and the right one."""

MAX_TOKENS = 12


def warm_up(folder: Path, digits: Sequence[Digit], settings: DemoSettings) -> Path:
    """Make the tiny model and train it a little on right answers; return the checkpoint."""
    with printing_to(folder / "train.log"):
        base = write_tiny_qwen2_vl(folder / "random", seed=settings.seed)
    data = folder / "data"
    rows = [
        {"instruction": f"<image>{QUESTION}", "output": digit.answer, "images": [str(digit.image)]} for digit in digits
    ]
    write_text(data / "digits.json", json.dumps(rows, indent=1))
    columns = {"prompt": "instruction", "response": "output", "images": "images"}
    write_text(data / "dataset_info.json", json.dumps({"digits": {"file_name": "digits.json", "columns": columns}}))
    return _train(base, folder, data, "digits", settings.warm_up, settings.seed, title="Warm-up (SFT)")


def make_pairs(checkpoint: Path, folder: Path, digits: Sequence[Digit], settings: DemoSettings) -> dict[str, Any]:
    """Let the model answer, grade the answers, pair them; return the engine's counts.

    The pairs and their `dataset_info.json` entry `digits` stand in `folder / "dataset"`.
    """
    low, high = WORST_TO_BEST
    result = run_engine(
        {
            "pipeline": "verifiable",
            "seed": settings.seed,
            "models": {"sampler": {"model": str(checkpoint), "batch_size": 256}},
            "sample": {"n": settings.samples, "temperature": settings.temperature, "max_tokens": MAX_TOKENS},
            "reward": {"grader": "uni_dpo.demo.stages:closeness", "low": low, "high": high},
            "pairs": {"min_gap": 1.0, "max_pairs_per_question": settings.pairs_per_image, "length_balance": "off"},
            "dataset": {"name": "digits"},
        },
        folder,
        questions=[
            Question(id=digit.image.stem, text=QUESTION, images=(str(digit.image),), reference=digit.answer)
            for digit in digits
        ],
    )
    return dict(result.report["pair"])


def closeness(given: str, question: Question) -> float:
    """How close an answer is to the truth, from 0 to 1.

    1 for the right answer; for another digit 0.4 less the further away it lies (at most 0.36); 0 for anything else.
    """
    labels = {answer(label): label for label in range(len(WORDS))}
    if given.strip() not in labels:
        return 0.0
    distance = abs(labels[given.strip()] - labels[str(question.reference)])
    return 1.0 if distance == 0 else 0.4 * (1 - distance / (len(WORDS) - 1))


def align(checkpoint: Path, pairs: Path, folder: Path, training: dict[str, Any], seed: int, *, title: str) -> Path:
    """Train a checkpoint on pairs by the loss that `training` names; return the new checkpoint."""
    return _train(checkpoint, folder, pairs / "dataset", "digits", training, seed, title=title)


def exact_match(checkpoint: Path, digits: Sequence[Digit]) -> float:
    """The share of images whose likeliest answer is the right one, word for word."""
    from uni_dpo.models.backends.base import Request, Sampling, make_backend

    backend = make_backend({"model": str(checkpoint), "batch_size": 256})
    asked = [Request(QUESTION, (str(digit.image),)) for digit in digits]
    replies = backend.generate(asked, Sampling(temperature=0.0, max_tokens=MAX_TOKENS))
    right = [
        isinstance(reply, list) and reply[0].text.strip() == digit.answer
        for reply, digit in zip(replies, digits, strict=True)
    ]
    return sum(right) / len(right)


def settings_record(settings: DemoSettings) -> dict[str, Any]:
    """The settings as JSON has them."""
    return dict(json.loads(json.dumps(dataclasses.asdict(settings))))


def _train(
    model: Path, folder: Path, data: Path, dataset: str, training: dict[str, Any], seed: int, *, title: str
) -> Path:
    output = folder / "checkpoint"
    where = {"model_name_or_path": str(model), "output_dir": str(output), "dataset_dir": str(data), "dataset": dataset}
    train(SHARED | training | where | {"seed": seed}, title=title, log=folder / "train.log")
    return output
