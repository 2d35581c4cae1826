"""How probable it is that an image answers a yes/no question with yes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from uni_dpo.engine.asking import Template
from uni_dpo.engine.records import Aside
from uni_dpo.models.backends.base import Backend, Failure, Request
from uni_dpo.storage.identity import derive_seed


@dataclass(frozen=True)
class Check:
    """A yes/no question about images."""

    question: str
    images: tuple[str, ...] = ()


class Checker(ABC):
    """Base of all checkers. A subclass names the `roles` of the models that it asks."""

    roles: ClassVar[tuple[str, ...]] = ("checker",)

    def __init__(self, models: Mapping[str, Backend], template: Template, seed: int) -> None:
        self.models = models
        self.template = template
        self.seed = seed

    @abstractmethod
    def check(self, checks: Sequence[Check]) -> list[float | Failure | Aside]:
        """P(yes) in [0, 1] for each check, in order; an `Aside` where the model says neither yes nor no."""


def word_forms(word: str) -> tuple[str, ...]:
    """A word in all casings, with and without a leading space: models spell their first token in any of them."""
    casings = dict.fromkeys((word.lower(), word.capitalize(), word.upper()))
    return tuple(f"{space}{casing}" for space in ("", " ") for casing in casings)


YES_NO = {"yes": word_forms("yes"), "no": word_forms("no")}


def probability_of_yes(logprobs: Mapping[str, float]) -> float | None:
    """P(yes) ÷ (P(yes) + P(no)) from the two log-probabilities; None where both are -inf."""
    yes, no = logprobs["yes"], logprobs["no"]
    if yes == no == -math.inf:
        return None
    gap = no - yes
    return 1 / (1 + math.exp(gap)) if gap < 700 else 0.0


class FirstTokenChecker(Checker):
    """Reads P(yes) against P(no) from the log-probabilities of the reply's first token; equal checks are made once."""

    def check(self, checks: Sequence[Check]) -> list[float | Failure | Aside]:
        """See `Checker.check`."""
        distinct = list(dict.fromkeys(checks))
        requests = [
            Request(self.template.render(question=check.question), check.images, derive_seed(self.seed, check.question))
            for check in distinct
        ]
        replies = self.models["checker"].choice_logprobs(requests, YES_NO)
        results = {check: _read(check, reply) for check, reply in zip(distinct, replies, strict=True)}
        return [results[check] for check in checks]


def _read(check: Check, reply: dict[str, float] | Failure) -> float | Failure | Aside:
    if isinstance(reply, Failure):
        return reply
    probability = probability_of_yes(reply)
    return Aside("neither yes nor no", check.question) if probability is None else probability
