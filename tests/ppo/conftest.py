"""A tiny policy that has learnt a little, and configs of short runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import QUESTION, Digit

MakeConfig = Callable[..., Any]


@pytest.fixture(autouse=True, scope="module")
def _a_process_that_has_not_trained() -> None:
    """A process has one precision until it ends; another file's tests may have set bf16."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def questions_of(digits: list[Digit]) -> list[Any]:
    """The digits as the questions that PPO asks."""
    from uni_dpo.engine import Question

    return [Question(digit.image.stem, QUESTION, (str(digit.image),), digit.answer) for digit in digits]


def warm_up(start: Path, folder: Path, digits: list[Digit], *, steps: int) -> Path:
    """Train the checkpoint `start` on right answers for some steps of 32 and write it to `folder`."""
    import random

    import torch

    from uni_dpo.online.config import RewardOptions
    from uni_dpo.ppo.config import PPOConfig
    from uni_dpo.ppo.policy import answer_logps, collate, encode, load_policy

    config = PPOConfig(str(start), "", RewardOptions(function="exact"), finetuning="full", freeze_vision_tower=False)
    policy, _, processor = load_policy(config)
    prompts = [encode(question, processor) for question in questions_of(digits)]
    end = processor.tokenizer.eos_token
    answers = [processor.tokenizer(digit.answer + end)["input_ids"] for digit in digits]
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    draw = random.Random(0)
    for _ in range(steps):
        rows = draw.sample(range(len(digits)), 32)
        inputs, labels = collate(
            [prompts[row] for row in rows], [answers[row] for row in rows], processor.tokenizer.pad_token_id
        )
        logps, _ = answer_logps(policy.model, inputs, labels, 1.0)
        (-logps.sum() / (labels >= 0).sum()).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    policy.model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def warm_policy(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2_vl: Path, digits: dict[str, list[Digit]]) -> Path:
    """A policy that has learnt something and has something left to learn."""
    return warm_up(tiny_qwen2_vl, tmp_path_factory.mktemp("ppo") / "policy", digits["train"], steps=115)


@pytest.fixture
def config(tiny_qwen2_vl: Path, tmp_path: Path) -> MakeConfig:
    """`config(**settings)` is a PPO config of small batches over the random tiny model."""
    from uni_dpo.online.config import RewardOptions
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
