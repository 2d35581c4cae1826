"""Models that rate answers, as a whole or step by step, and write none."""

from collections.abc import Sequence

from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.models.backends.base import Request, Usage
from uni_dpo.models.backends.settings import ProcessRewardSettings, RewardModelSettings
from uni_dpo.models.rewards import Conversation, load_process_model, load_reward_model


class RewardModelBackend:
    """A reward model: LlamaFactory's value head, or a sequence classifier."""

    Options = RewardModelSettings

    def __init__(self, options: RewardModelSettings) -> None:
        self.usage = Usage()
        self.batch_size = options.batch_size
        self.model = load_reward_model(options)

    def rate(self, requests: Sequence[Request], answers: Sequence[str]) -> list[float]:
        """How good `answers[i]` is as the reply to `requests[i]`, on the model's own scale."""
        conversations = [
            Conversation(IMAGE_TOKEN * len(request.images) + request.prompt, answer, request.images)
            for request, answer in zip(requests, answers, strict=True)
        ]
        ratings: list[float] = []
        for start in range(0, len(conversations), self.batch_size):
            ratings += self.model.rate(conversations[start : start + self.batch_size])
        self.usage.add(Usage(requests=len(ratings)))
        return ratings


class ProcessRewardBackend:
    """A process reward model: a token classifier, read at the token that closes each step."""

    Options = ProcessRewardSettings

    def __init__(self, options: ProcessRewardSettings) -> None:
        self.usage = Usage()
        self.batch_size = options.batch_size
        self.model = load_process_model(options)

    def rate_steps(self, requests: Sequence[Request], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """P(right) of every step of `answers[i]`, which is not without steps, as the reply to `requests[i]`."""
        solutions = [(request.prompt, steps) for request, steps in zip(requests, answers, strict=True)]
        ratings: list[list[float]] = []
        for start in range(0, len(solutions), self.batch_size):
            ratings += self.model.rate_steps(solutions[start : start + self.batch_size])
        self.usage.add(Usage(requests=len(ratings)))
        return ratings
