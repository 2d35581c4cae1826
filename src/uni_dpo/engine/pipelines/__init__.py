"""Ways to score answers and to pair them, one file each, and what every one of them is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from uni_dpo.data.questions import Question
from uni_dpo.data.videos import Video
from uni_dpo.engine.asking import ask
from uni_dpo.engine.pairing import PairOptions, balance_lengths, choose_pairs
from uni_dpo.engine.records import Answered, Pair, Row, Scored, ScoredAnswer
from uni_dpo.models.backends.base import Failure, Request
from uni_dpo.storage.identity import derive_seed

ENOUGH_TO_COMPARE = 20
"""So many answers or claims that are all rated alike show that the rater does not know."""


class Pipeline(ABC):
    """Base of all pipelines.

    A subclass names its options (frozen dataclasses), the roles of the models that it asks, and scores.
    The default pairing is `choose_pairs`; a subclass may pair otherwise. The constructor checks the options: it
    is also called, without models, before any model is loaded. A model is a `Backend`; in the roles that `raters`
    names it is a rater (`backends.raters`) instead.
    """

    RewardOptions: ClassVar[type]
    PairOptions: ClassVar[type] = PairOptions
    roles: ClassVar[tuple[str, ...]] = ()
    raters: ClassVar[Mapping[str, str]] = {}
    """Role → backend, for the roles whose models rate answers and write none."""
    read_only: ClassVar[tuple[str, ...]] = ()
    """Roles whose models are shown neither images nor videos."""

    def __init__(self, reward: Any, models: Mapping[str, Any], seed: int) -> None:
        self.options = reward
        self.models = models
        self.seed = seed

    @classmethod
    def reward_roles(cls, options: Any) -> tuple[str, ...]:
        """Return roles of the models that scoring asks under these options."""
        return cls.roles

    def request(self, prompt: str, images: tuple[str, ...] = (), videos: tuple[Video, ...] = ()) -> Request:
        """Return a request whose seed depends on what is asked: the same question twice is the same request."""
        return Request(prompt, images, derive_seed(self.seed, prompt), videos=videos)

    def put(self, role: str, requests: Sequence[Request], parse: Callable[[str], Any], what: str) -> list[Any]:
        """Return `asking.ask` of the model in `role`, under the options `max_tokens` and `attempts`."""
        options = self.options
        return ask(
            self.models[role], requests, parse, what=what, max_tokens=options.max_tokens, attempts=options.attempts
        )

    def on_scale(self, share: float) -> float:
        """Return the score of a grade in [0, 1], from the option `low` to the option `high`."""
        return float(self.options.low + (self.options.high - self.options.low) * share)

    def check(self, questions: Sequence[Question]) -> None:  # noqa: B027  # most pipelines take any question
        """Raise a UniDPOError where answers to these questions can't be scored, before any is asked."""

    @abstractmethod
    def reward(self, items: Sequence[Answered]) -> list[Scored | Failure]:
        """Score every answer of every question, in order."""

    @classmethod
    def pair(cls, question_id: str, answers: Sequence[ScoredAnswer], options: Any, seed: int) -> list[Pair]:
        """Return pairs among the answers to one question."""
        return choose_pairs(question_id, answers, options, seed)

    @classmethod
    def balance(cls, pairs: Sequence[Pair], options: Any) -> list[Pair]:
        """Return the pairs of the whole data set that stay, for a balance that no single question shows."""
        return balance_lengths(pairs, options.length_balance)

    @classmethod
    def undecided(cls, answers: Sequence[ScoredAnswer]) -> str | None:
        """Return what shows that the answers of the whole run were not told apart.

        None where they were, or are too few.
        """
        scores = {answer.score for answer in answers}
        if len(answers) < ENOUGH_TO_COMPARE or len(scores) > 1:
            return None
        return f"all {len(answers):,} answers have the score {scores.pop():g}: nothing tells them apart"

    @classmethod
    def summarize(cls, details: Sequence[Row]) -> Row:
        """Return what the report should say of the reward stage, from each question's `Scored.detail`."""
        return {}
