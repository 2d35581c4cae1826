"""What travels through the engine: a question, its answers, their scores, and the pairs made of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from uni_dpo.data.questions import Question
from uni_dpo.models.backends.base import Failure
from uni_dpo.storage.rowlog import Row as Row


def wording(text: str) -> str:
    """Return an answer without surplus white space: two answers of one wording count as the same."""
    return " ".join(text.split())


@dataclass(frozen=True)
class Answered:
    """A question with the answers that a sampler gave, the input of a pipeline's reward stage.

    `cut` holds the places of those that did not end by themselves, from 0.
    """

    question: Question
    answers: tuple[str, ...]
    cut: tuple[int, ...] = ()

    @property
    def distinct(self) -> tuple[str, ...]:
        """The answers without repeats: of those that differ in white space only, the first."""
        return tuple({wording(text): text for text in reversed(self.answers)}.values())[::-1]

    @property
    def cut_wordings(self) -> set[str]:
        """Wordings of the answers that never ended by themselves."""
        ended = {wording(text) for place, text in enumerate(self.answers) if place not in self.cut}
        return {wording(self.answers[place]) for place in self.cut} - ended


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer, its score (the higher the better), how the score came about, and whether the token limit cut it.

    The engine sets `cut`; a pipeline need not.
    """

    text: str
    score: float
    detail: Row = field(default_factory=dict)
    cut: bool = False


@dataclass(frozen=True)
class Aside:
    """Something that a model said and that could not be used, kept for reading."""

    reason: str
    text: str


@dataclass(frozen=True)
class Scored:
    """The output of a pipeline's reward stage for one question."""

    answers: tuple[ScoredAnswer, ...]
    aside: tuple[Aside, ...] = ()
    detail: Row = field(default_factory=dict)


def collected(found: Iterable[ScoredAnswer | Aside | Failure], detail: Row | None = None) -> Scored | Failure:
    """Return what came of one question's answers; one failure among it fails the question, which is put again."""
    results = list(found)
    failed = next((one for one in results if isinstance(one, Failure)), None)
    answers = tuple(one for one in results if isinstance(one, ScoredAnswer))
    return failed or Scored(answers, tuple(one for one in results if isinstance(one, Aside)), detail or {})


@dataclass(frozen=True)
class Pair:
    """Two answers to one question, the first one better."""

    question_id: str
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float

    @property
    def word_difference(self) -> int:
        """Words in chosen minus words in rejected."""
        return len(self.chosen.split()) - len(self.rejected.split())
