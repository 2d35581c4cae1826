"""Reward models of all kinds, untrained: what they say is arbitrary, and it is the same number each time."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import QUESTION, Digit, answer


def digit_pairs(digits: list[Digit]) -> list[dict[str, Any]]:
    """Right and wrong answers of different lengths."""
    return [
        {
            "id": digit.image.stem,
            "instruction": f"<image>{QUESTION}",
            "chosen": digit.answer,
            "rejected": answer((digit.label + 3) % 10) + " yes" * (at % 3),
            "images": [str(digit.image)],
        }
        for at, digit in enumerate(digits)
    ]


@pytest.fixture(scope="session")
def step_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token classifier with two labels."""
    from uni_dpo.demo.tiny_model import write_tiny_text_model

    return write_tiny_text_model(tmp_path_factory.mktemp("models") / "process", "process_reward", spread=0.5)


@pytest.fixture(scope="session")
def value_head(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2_vl: Path, digits: dict[str, list[Digit]]) -> Path:
    """What LlamaFactory's reward stage writes after two steps."""
    from llamafactory.train.tuner import run_exp

    folder = tmp_path_factory.mktemp("reward")
    (folder / "pairs.json").write_text(json.dumps(digit_pairs(digits["preference"][:8])))
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    entry = {"file_name": "pairs.json", "ranking": True, "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": entry}))
    run_exp(
        {
            "stage": "rm",
            "do_train": True,
            "model_name_or_path": str(tiny_qwen2_vl),
            "finetuning_type": "full",
            "dataset_dir": str(folder),
            "dataset": "pairs",
            "template": "qwen2_vl",
            "output_dir": str(folder / "model"),
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
        }
    )
    shutil.rmtree(folder / "model" / "runs", ignore_errors=True)
    return folder / "model"
