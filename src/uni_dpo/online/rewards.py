"""Rewards of finished answers: from a reward model, or from a function of answer and question."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uni_dpo.data.questions import Question
from uni_dpo.graders.grading import Grader, check_references, over_references
from uni_dpo.models.backends.base import Request, RewardModelBackend
from uni_dpo.models.backends.settings import RewardModelSettings
from uni_dpo.models.rewards.options import find_reward_checkpoint
from uni_dpo.online.config import RewardOptions
from uni_dpo.settings.registry import find

Reward = Callable[[Sequence[Question], Sequence[str]], list[float]]
"""Questions and their answers → one reward each."""


def check_reward(options: RewardOptions, questions: Sequence[Question]) -> None:
    """See that a reward is there and can rate answers to these questions, without loading anything.

    Raises:
        UniDPOError: no such reward model or function, or a question without the reference that the function needs.
    """
    if options.model is not None:
        find_reward_checkpoint(_model_settings(options))
        return
    check_references(str(options.function), questions)


def make_reward(options: RewardOptions, *, batch_size: int, trust_remote_code: bool = False) -> Reward:
    """Return the reward that a config names.

    Args:
        batch_size: answers that a reward model sees at once.

    Raises:
        UniDPOError: there is no such reward model or function.
    """
    if options.function is not None:
        return graded(over_references(find("grader", options.function)))
    settings = _model_settings(options, batch_size=batch_size, trust_remote_code=trust_remote_code)
    model = RewardModelBackend(settings)
    return lambda asked, answers: model.rate([Request(question.text, question.images) for question in asked], answers)


def graded(grader: Grader) -> Reward:
    """Return a grader as reward; an answer that it cannot grade earns nothing."""

    def rate(questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
        return [float(grader(answer, question) or 0.0) for question, answer in zip(questions, answers, strict=True)]

    return rate


def _model_settings(options: RewardOptions, **more: Any) -> RewardModelSettings:
    return RewardModelSettings(Path(str(options.model)), options.template, **more)
