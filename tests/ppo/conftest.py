"""Configs of short PPO runs over the tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeConfig = Callable[..., Any]


@pytest.fixture(autouse=True, scope="module")
def _a_process_that_has_not_trained() -> None:
    """A process has one precision until it ends; another file's tests may have set bf16."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def config(tiny_qwen2_vl: Path, tmp_path: Path) -> MakeConfig:
    """`config(**settings)` is a PPO config of small batches over the random tiny model."""
    from uni_dpo.online import RewardOptions
    from uni_dpo.ppo.config import PPOConfig

    base = {
        "model": str(tiny_qwen2_vl),
        "output_dir": str(tmp_path / "out"),
        "reward": RewardOptions(function="uni_dpo.demo.digits:closeness"),
        "finetuning": "full",
        "freeze_vision_tower": False,
        "steps": 2,
        "rollout_batch_size": 8,
        "mini_batch_size": 8,
        "micro_batch_size": 4,
        "ppo_epochs": 2,
        "learning_rate": 1e-3,
        "max_tokens": 6,
    }
    return lambda **settings: PPOConfig(**(base | settings))
