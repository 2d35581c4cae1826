"""Every family that sees images trains with TRL, whatever shape its processor gives to them."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from uni_dpo.trl import UniDPOTrainer

PLACEHOLDERS = {
    "llama": "<image>",
    "qwen": "<|vision_start|><|image_pad|><|vision_end|>",
    "minicpmv4_6": "<|image_pad|>",
}
"""What stands for an image in a prompt, by the special tokens of the checkpoint."""

CHECKPOINTS = Path(__file__).parents[1] / "llamafactory" / "checkpoints.py"


def write_checkpoint(architecture: str, tokens: str, folder: Path) -> Path:
    spec = importlib.util.spec_from_file_location("checkpoints", CHECKPOINTS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_checkpoint(architecture, tokens, folder)


@pytest.mark.parametrize("architecture", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "minicpmv4_6"])
def test_it_trains(
    architecture: str, digits: dict[str, list[Any]], settings: Callable[..., Any], tmp_path: Path
) -> None:
    """Plain prompts with the model's own placeholder; images of two shapes, and a row without."""
    from PIL import Image

    tokens = "qwen" if "qwen" in architecture else architecture if architecture in PLACEHOLDERS else "llama"
    wide = tmp_path / "wide.png"
    Image.open(digits["preference"][0].image).resize((112, 56)).save(wide)
    shapes = ([str(digits["preference"][1].image)], [str(wide)], [], [str(wide), str(digits["preference"][2].image)])
    rows = [
        {
            "prompt": PLACEHOLDERS[tokens] * len(images) + "Which digit?",
            "chosen": " Four",
            "rejected": " I cannot say",
            "images": images,
            "score_chosen": 4.0,
            "score_rejected": 1.0,
        }
        for images in shapes * 2
    ]
    checkpoint = write_checkpoint(architecture, tokens, tmp_path / "checkpoint")
    trainer = UniDPOTrainer(str(checkpoint), args=settings(num_train_epochs=2), train_dataset=Dataset.from_list(rows))
    trainer.train()
    steps = [line for line in trainer.state.log_history if "loss" in line]
    assert len(steps) == 4
    assert all(math.isfinite(line["loss"]) for line in steps)
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["rewards/margins"] > 0
    assert steps[-1]["loss"] < steps[0]["loss"]
