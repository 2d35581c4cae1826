"""Several rated answers to one question: reading them from a row, and which pairs of them count."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from uni_dpo.data.dataset_info import Columns, DatasetEntry
from uni_dpo.data.faults import Fault, shown
from uni_dpo.data.pair import PreferencePair, RowReader, read_score

T = TypeVar("T")
Pairing = Literal["all", "neighbours", "ends"]
"""Which pairs a ranked list gives: every two answers, each with the next, or the best with the worst."""
TEXT_KEYS = ("response", "answer", "text", "content", "value")
"""Keys of an answer that is an object; the first that it has holds its text."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """One answer of several, with its score or its rank (1 is best) where the format has them."""

    text: str
    score: float | None = None
    rank: float | None = None


@dataclass(frozen=True, slots=True)
class PairChoice:
    """Which pairs of ranked answers count: `min_gap` is the least difference of two scores; 0 takes any difference."""

    pairing: Pairing = "all"
    min_gap: float = 0.0

    def pairs(self, scores: Sequence[float], same_as: Sequence[Any]) -> list[tuple[int, int]]:
        """Return the pairs (better, worse) of some answers, best first, as places in `scores`.

        Two answers that are equal in `same_as` make no pair, nor do two of equal scores.
        """
        best_first = sorted(range(len(scores)), key=lambda at: -scores[at])
        return [
            (better, worse)
            for better, worse in candidates(best_first, self.pairing)
            if wide_enough(scores[better] - scores[worse], self.min_gap) and same_as[better] != same_as[worse]
        ]


ALL_PAIRS = PairChoice()


def wide_enough(gap: float, least: float) -> bool:
    """Tell whether two scores make a pair: 4.7 and 4.4 differ by 0.3, whatever floating point makes of it."""
    return gap > 0 and (gap >= least or math.isclose(gap, least))


def candidates(answers: Sequence[T], pairing: Pairing) -> Iterator[tuple[T, T]]:
    """Yield the (better, worse) that `pairing` takes of some answers, best first."""
    if pairing == "all":
        return itertools.combinations(answers, 2)
    if pairing == "neighbours":
        return itertools.pairwise(answers)
    return iter([(answers[0], answers[-1])] if len(answers) > 1 else [])


@dataclass(frozen=True, slots=True)
class RankedRow:
    """A question and its rated answers, in the order of the file."""

    answers: tuple[Ranked, ...]
    question: PreferencePair
    """What every pair of the row has in common; its answers are empty."""

    def pairs(self, choice: PairChoice) -> list[PreferencePair]:
        """Give the pairs that `choice` takes, best first; of every two different answers where they have no scores."""
        texts = [answer.text for answer in self.answers]
        scores = [answer.score for answer in self.answers if answer.score is not None]
        scored = len(scores) == len(texts)
        places = choice.pairs(scores, texts) if scored else candidates(range(len(texts)), choice.pairing)
        return [
            replace(
                self.question,
                chosen=texts[better],
                rejected=texts[worse],
                score_chosen=scores[better] if scored else None,
                score_rejected=scores[worse] if scored else None,
            )
            for better, worse in places
        ]


def read_ranked(
    row: dict[str, Any], entry: DatasetEntry, faults: list[Fault], *, scores_required: bool = True
) -> RankedRow | None:
    """Return the question and rated answers that a row holds; what is wrong with the row is appended to `faults`.

    Answers are texts, with their scores in a column beside them, or objects with a text and a `score`. None where they
    cannot be read.
    """
    reader = RowReader(row, entry, faults)
    turns = reader.turns()
    answers = _answers(row, entry.columns, reader, faults, scores_required)
    question = reader.question(turns)
    return None if question is None or answers is None else RankedRow(tuple(answers), question)


def answer_text(answer: Any) -> Any:
    """Return the text of an answer that is a text or an object; whatever stands there where it is neither."""
    if isinstance(answer, dict):
        return next((answer[key] for key in TEXT_KEYS if answer.get(key) is not None), None)
    return answer


def answer_scores(row: dict[str, Any], columns: Columns) -> list[Any]:
    """Return the scores of a row's answers as they stand there: in their own column, or in each answer."""
    beside = row.get(columns.scores)
    if isinstance(beside, list):
        return beside
    return [answer.get("score") if isinstance(answer, dict) else None for answer in row[str(columns.answers)]]


def _answers(
    row: dict[str, Any], columns: Columns, reader: RowReader, faults: list[Fault], scores_required: bool
) -> list[Ranked] | None:
    column = str(columns.answers)
    present, answers = reader.required(columns.answers, "answers")
    if not present:
        return None
    if not isinstance(answers, list):
        faults.append(Fault("answers_type", column, shown(answers), "write a list of answers"))
        return None
    before = len(faults)
    texts = [reader.answer_text(answer_text(answer), f"{column}[{at}]") for at, answer in enumerate(answers)]
    beside = isinstance(row.get(columns.scores), list)
    scores = answer_scores(row, columns)
    if len(scores) != len(answers):
        found = f"{len(scores)} scores for {len(answers)} answers"
        faults.append(Fault("scores_count", columns.scores, found, "give every answer one"))
        return None
    ranked = []
    for at, (text, score) in enumerate(zip(texts, scores, strict=True)):
        place = f"{columns.scores}[{at}]" if beside else f"{column}[{at}].score"
        ranked.append(Ranked(str(text), read_score({place: score}, place, faults, required=scores_required)))
    return None if len(faults) > before else ranked
