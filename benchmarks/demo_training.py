"""What benchmarks share that train the embedded model on digits: its warm-up, its pairs, LlamaFactory in process."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from uni_dpo.demo.digits import QUESTION, Digit
from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl
from uni_dpo.engine import Question, run_engine
from uni_dpo.llamafactory import register
from uni_dpo.monitor.console import readable
from uni_dpo.storage.writing import write_text

MAX_TOKENS = 12
SHARED: dict[str, Any] = {
    "do_train": True, "finetuning_type": "full", "freeze_vision_tower": False, "freeze_multi_modal_projector": False,
    "template": "qwen2_vl", "cutoff_len": 256, "overwrite_output_dir": True, "overwrite_cache": True,
    "lr_scheduler_type": "cosine", "logging_steps": 5, "save_strategy": "no", "report_to": "none",
}  # fmt: skip
COLUMNS = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected", "images": "images"}


def train(settings: dict[str, Any]) -> Path:
    """Run LlamaFactory in this process on `SHARED` and `settings`; return the output folder."""
    register()
    from llamafactory.train.tuner import run_exp

    output = Path(settings["output_dir"])
    with readable(output):
        run_exp(SHARED | settings, callbacks=[TrainerCallback()])
    return output


def warm_up(folder: Path, digits: Sequence[Digit], *, seed: int = 0) -> Path:
    """Train the embedded model of `seed` a little on right answers; return the checkpoint."""
    output = folder / "checkpoint"
    if not (output / "config.json").exists():
        rows = [
            {"instruction": f"<image>{QUESTION}", "output": digit.answer, "images": [str(digit.image)]}
            for digit in digits
        ]
        columns = {"prompt": "instruction", "response": "output", "images": "images"}
        write_data(folder / "data", rows, {"columns": columns})
        train(
            {
                "stage": "sft",
                "model_name_or_path": str(write_tiny_qwen2_vl(folder / "random", seed=seed)),
                "learning_rate": 3e-3,
                "warmup_ratio": 0.1,
                "num_train_epochs": 6,
                "per_device_train_batch_size": 32,
                "dataset_dir": str(folder / "data"),
                "dataset": "digits",
                "output_dir": str(output),
                "seed": seed,
            }
        )
    return output


def make_pairs(checkpoint: Path, folder: Path, digits: Sequence[Digit], *, seed: int = 0) -> list[dict[str, Any]]:
    """Let the model answer, grade the answers by closeness, pair them; return the rows."""
    file = folder / "dataset" / "pairs.json"
    if not file.exists():
        run_engine(
            {
                "pipeline": "verifiable", "seed": seed,
                "models": {"sampler": {"model": str(checkpoint), "batch_size": 256}},
                "sample": {"n": 8, "temperature": 1.0, "max_tokens": MAX_TOKENS},
                "reward": {"grader": "uni_dpo.demo.digits:closeness", "low": 0.0, "high": 5.0},
                "pairs": {"min_gap": 1.0, "max_pairs_per_question": 2, "length_balance": "off"},
                "dataset": {"name": "digits"},
            },
            folder,
            questions=[
                Question(id=digit.image.stem, text=QUESTION, images=(str(digit.image),), reference=digit.answer)
                for digit in digits
            ],
        )  # fmt: skip
    return list(json.loads(file.read_text()))


def write_data(folder: Path, rows: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    """Write rows as the dataset `digits`."""
    write_text(folder / "digits.json", json.dumps(rows))
    write_text(folder / "dataset_info.json", json.dumps({"digits": {"file_name": "digits.json", **entry}}))


def right_answers(checkpoint: Path, digits: Sequence[Digit]) -> list[bool]:
    """Whether the likeliest answer about each image is the right one, word for word."""
    from uni_dpo.models.backends.base import Request, Sampling, make_backend

    backend = make_backend({"model": str(checkpoint), "batch_size": 256})
    asked = [Request(QUESTION, (str(digit.image),)) for digit in digits]
    replies = backend.generate(asked, Sampling(temperature=0.0, max_tokens=MAX_TOKENS))
    return [
        isinstance(reply, list) and reply[0].text.strip() == digit.answer
        for reply, digit in zip(replies, digits, strict=True)
    ]


def exact_match(checkpoint: Path, digits: Sequence[Digit]) -> float:
    """The share of images whose likeliest answer is the right one."""
    right = right_answers(checkpoint, digits)
    return sum(right) / len(right)
