"""What every pipeline is: a way to score answers, and a way to pair them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from uni_dpo.engine.backends.base import Backend, Failure, Request
from uni_dpo.engine.pairing import PairOptions, balance_lengths, gap_pairs
from uni_dpo.engine.records import Answered, Pair, Row, Scored, ScoredAnswer, derive_seed


class Pipeline(ABC):
    """Base of all pipelines.

    A subclass names its options (frozen dataclasses), the roles of the models that it asks, and scores.
    The default pairing is by score gap; a subclass may pair otherwise. The constructor checks the options: it
    is also called, without models, before any model is loaded.
    """

    RewardOptions: ClassVar[type]
    PairOptions: ClassVar[type] = PairOptions
    roles: ClassVar[tuple[str, ...]] = ()

    def __init__(self, reward: Any, models: Mapping[str, Backend], seed: int) -> None:
        self.options = reward
        self.models = models
        self.seed = seed

    @classmethod
    def reward_roles(cls, options: Any) -> tuple[str, ...]:
        """Roles of the models that scoring asks under these options."""
        return cls.roles

    def request(self, prompt: str, images: tuple[str, ...] = ()) -> Request:
        """A request whose seed depends on what is asked: the same question twice is the same request."""
        return Request(prompt, images, derive_seed(self.seed, prompt))

    @abstractmethod
    def reward(self, items: Sequence[Answered]) -> list[Scored | Failure]:
        """Score every answer of every question, in order."""

    @classmethod
    def pair(cls, question_id: str, answers: Sequence[ScoredAnswer], options: Any, seed: int) -> list[Pair]:
        """Pairs among the answers to one question."""
        return gap_pairs(question_id, answers, min_gap=options.min_gap, cap=options.max_pairs_per_question, seed=seed)

    @classmethod
    def balance(cls, pairs: Sequence[Pair], options: Any) -> list[Pair]:
        """The pairs of the whole data set that stay, for a balance that no single question shows."""
        return balance_lengths(pairs, options.length_balance)

    @classmethod
    def summarize(cls, details: Sequence[Row]) -> Row:
        """What the report should say of the reward stage, from each question's `Scored.detail`."""
        return {}
