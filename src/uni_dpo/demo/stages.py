"""The demo's steps, each from files to files, and LlamaFactory run within this process."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.utils import logging

from uni_dpo.demo.digits import QUESTION, WORDS, Digit, answer
from uni_dpo.demo.settings import SHARED, DemoSettings
from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl
from uni_dpo.engine import Question, run_engine
from uni_dpo.llamafactory import register
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


def train(config: dict[str, Any], *, title: str, log: Path) -> None:
    """Run LlamaFactory on `config` in this process.

    Args:
        config: what a YAML file for `uni-dpo train` would say.
        title: of the progress bar.
        log: file to which everything that the run prints is appended.
    """
    with printing_to(log) as terminal:
        register()
        from llamafactory.train.tuner import run_exp

        run_exp(dict(config), callbacks=[_StepBar(title, terminal)])


class _StepBar(TrainerCallback):
    """Steps done, steps in all, time left and the latest loss."""

    def __init__(self, title: str, terminal: TextIO) -> None:
        self.bar = tqdm(desc=title, unit="step", file=terminal, mininterval=0.5)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.reset(total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


@contextmanager
def printing_to(log: Path) -> Iterator[TextIO]:
    """Send what this process prints, C libraries included, to `log`; yield the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    with log.open("a", encoding="utf-8") as file, os.fdopen(os.dup(kept[2]), "w") as terminal:
        for stream in kept:
            os.dup2(file.fileno(), stream)
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, original in kept.items():
                os.dup2(original, stream)
                os.close(original)
            # LlamaFactory makes transformers talkative for the rest of the process.
            logging.set_verbosity_error()
            logging.disable_progress_bar()
