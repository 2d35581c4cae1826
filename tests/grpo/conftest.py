"""Configs of short GRPO runs over the tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.engine import Question

MakeSettings = Callable[..., Any]


@pytest.fixture
def questions(digit_questions: dict[str, list[Question]]) -> list[Question]:
    """The digits as questions with references."""
    return digit_questions["preference"]


@pytest.fixture
def settings(tiny_qwen2_vl: Path, tmp_path: Path) -> MakeSettings:
    """`settings(**changes)` is a config of groups of four; names that are not ours go to TRL."""
    from uni_dpo.grpo.config import GRPOSettings
    from uni_dpo.online import OnlineConfig, RewardOptions

    ours = {
        "model": str(tiny_qwen2_vl),
        "output_dir": str(tmp_path / "out"),
        "reward": RewardOptions(function="uni_dpo.demo.digits:closeness"),
        "finetuning": "full",
        "freeze_vision_tower": False,
    }
    trl = {
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_steps": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }

    def make(**changes: Any) -> GRPOSettings:
        shared = {name: value for name, value in changes.items() if name in OnlineConfig.__dataclass_fields__}
        others = {name: value for name, value in changes.items() if name not in shared}
        return GRPOSettings(**(ours | shared), training=trl | others)

    return make
