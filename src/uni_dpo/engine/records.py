"""What travels through the engine: a question, its answers, their scores, and the pairs made of them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
"""One line of a stage's file: JSON values only."""


@dataclass(frozen=True)
class Question:
    """One question about zero or more images.

    Attributes:
        id: unique in its data set; every later record of this question carries it.
        text: what is asked, without image placeholders.
        images: paths of the image files, in the order in which the question means them.
        reference: the right answer, where the data has one.
        options: letter → text of a multiple-choice question.
        answers: answers that came with the data, for the `given` sampler.
        place: file and row that it was read from, for messages.
    """

    id: str
    text: str
    images: tuple[str, ...] = ()
    reference: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    place: str = field(default="", compare=False)

    @property
    def called(self) -> str:
        """How a message names it."""
        return self.place or f"question {self.id}"

    def to_row(self) -> Row:
        """The question as JSON values; its place is no part of it."""
        return {
            "id": self.id,
            "text": self.text,
            "images": list(self.images),
            "reference": self.reference,
            "options": dict(self.options),
            "answers": list(self.answers),
        }

    @classmethod
    def from_row(cls, row: Row) -> "Question":
        """The inverse of `to_row`."""
        return cls(**{**row, "images": tuple(row["images"]), "answers": tuple(row["answers"])})


@dataclass(frozen=True)
class Answered:
    """A question with the answers that a sampler gave, the input of a pipeline's reward stage."""

    question: Question
    answers: tuple[str, ...]

    @property
    def distinct(self) -> tuple[str, ...]:
        """The answers without repeats: of those that differ in white space only, the first."""
        return tuple({" ".join(text.split()): text for text in reversed(self.answers)}.values())[::-1]


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer, its score (the higher the better) and how the score came about."""

    text: str
    score: float
    detail: Row = field(default_factory=dict)


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


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on all `parts` and on nothing else, least of all on a row's position."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
