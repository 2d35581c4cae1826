"""Configs of short GRPO runs over the tiny model, and the policy that the PPO tests warm up."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import Digit

MakeSettings = Callable[..., Any]


def warming() -> Any:
    """The module that warms the PPO tests' policy up."""
    spec = importlib.util.spec_from_file_location("warming", Path(__file__).parents[1] / "ppo" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def warm_policy(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2_vl: Path, digits: dict[str, list[Digit]]) -> Path:
    """A policy that has learnt something and has something left to learn."""
    return warming().warm_up(tiny_qwen2_vl, tmp_path_factory.mktemp("grpo") / "policy", digits["train"], steps=115)


@pytest.fixture(scope="session")
def questions(digits: dict[str, list[Digit]]) -> list[Any]:
    """The digits as questions with references."""
    return warming().questions_of(digits["preference"])


@pytest.fixture
def settings(tiny_qwen2_vl: Path, tmp_path: Path) -> MakeSettings:
    """`settings(**changes)` is a config of groups of four; names that are not ours go to TRL."""
    from uni_dpo.grpo.config import GRPOSettings
    from uni_dpo.online.config import OnlineConfig, RewardOptions

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
