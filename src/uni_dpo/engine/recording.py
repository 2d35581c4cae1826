"""`--debug`: every request and reply of a model, as it went over the wire."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from uni_dpo.engine.backends.base import AnswerLogprob, Failure, Request, Sample, Sampling, Usage


class Recorded:
    """A backend that writes what passes through it to a JSONL file."""

    def __init__(self, backend: Any, path: Path) -> None:
        self.backend = backend
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def usage(self) -> Usage:
        """What the backend has done."""
        usage: Usage = self.backend.usage
        return usage

    @usage.setter
    def usage(self, usage: Usage) -> None:
        self.backend.usage = usage

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        """See `Backend.generate`."""
        return self._written("generate", requests, self.backend.generate(requests, sampling))

    def choice_logprobs(
        self, requests: Sequence[Request], choices: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Failure]:
        """See `Backend.choice_logprobs`."""
        replies = self.backend.choice_logprobs(requests, choices)
        return self._written("choice_logprobs", requests, replies)

    def answer_logprobs(self, requests: Sequence[Request], answers: Sequence[str]) -> list[AnswerLogprob | Failure]:
        """See `Backend.answer_logprobs`."""
        replies = self.backend.answer_logprobs(requests, answers)
        return self._written("answer_logprobs", requests, replies, answers)

    def rate(self, requests: Sequence[Request], answers: Sequence[str]) -> list[float]:
        """See `RewardModelBackend.rate`."""
        return self._written("rate", requests, self.backend.rate(requests, answers), answers)

    def rate_steps(self, requests: Sequence[Request], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """See `ProcessRewardBackend.rate_steps`."""
        return self._written("rate_steps", requests, self.backend.rate_steps(requests, answers), answers)

    def _written(
        self, call: str, requests: Sequence[Request], replies: Any, answers: Sequence[Any] | None = None
    ) -> Any:
        with self.path.open("a", encoding="utf-8") as file:
            for index, (request, reply) in enumerate(zip(requests, replies, strict=True)):
                line = {"call": call, "request": asdict(request), "reply": _plain(reply)}
                if answers is not None:
                    line["answer"] = answers[index]
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return replies


def _plain(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_plain(item) for item in reply]
    return asdict(reply) if is_dataclass(reply) and not isinstance(reply, type) else reply
