"""Rewards of finished answers: from a reward model, or from a function of answer and question."""

from collections.abc import Callable, Sequence
from pathlib import Path

from uni_dpo.engine.graders import Grader
from uni_dpo.engine.records import Question
from uni_dpo.engine.registry import find
from uni_dpo.ppo.config import PPOConfig
from uni_dpo.preferences.checks import IMAGE_TOKEN
from uni_dpo.scoring import Conversation, RewardModelOptions, load_reward_model

Reward = Callable[[Sequence[Question], Sequence[str]], list[float]]
"""Questions and their answers → one reward each."""


def make_reward(config: PPOConfig) -> Reward:
    """The reward that a config names.

    Raises:
        UniDPOError: there is no such reward model or function.
    """
    if config.reward.function is not None:
        return graded(find("grader", config.reward.function))
    options = RewardModelOptions(
        Path(str(config.reward.model)), config.reward.template, trust_remote_code=config.trust_remote_code
    )
    model = load_reward_model(options)

    def rate(questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
        conversations = [
            Conversation(IMAGE_TOKEN * len(question.images) + question.text, answer, question.images)
            for question, answer in zip(questions, answers, strict=True)
        ]
        size = config.micro_batch_size
        return [
            rating
            for start in range(0, len(conversations), size)
            for rating in model.rate(conversations[start : start + size])
        ]

    return rate


def graded(grader: Grader) -> Reward:
    """A grader as reward; an answer that it cannot grade earns nothing."""

    def rate(questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
        return [float(grader(answer, question) or 0.0) for question, answer in zip(questions, answers, strict=True)]

    return rate
