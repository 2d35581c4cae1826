"""Mathematics: every step rated by a process reward model, and the final answer checked against the truth.

Steps and their product as an answer's score: arXiv 2305.20050, section 2.4; the least of the steps: arXiv 2312.08935.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from uni_dpo.data.questions import Question
from uni_dpo.engine.pairing import BestWorstOptions, choose_pairs
from uni_dpo.engine.pipelines import Pipeline
from uni_dpo.engine.records import Answered, Aside, Pair, Row, Scored, ScoredAnswer, collected
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import check_references, load_grader
from uni_dpo.models.backends.base import Failure, Request

Aggregate = Literal["min", "product", "mean", "last"]


@dataclass(frozen=True)
class ProcessRewardOptions:
    """Settings under `reward:`.

    Attributes:
        aggregate: how P(right) of its steps becomes an answer's process score: the `min`, the `product`, the `mean`,
            or that of the `last` step.
        separator: what stands between two steps of an answer.
        outcome: what the final answer counts. `require` compares right answers with wrong ones only, `add` any
            answers; both score by the mean of grade and process score. `ignore` scores by the process alone and needs
            no reference.
        grader: as for `verifiable`; an answer that it cannot grade counts as wrong.
        low, high: the range of the scores.
    """

    aggregate: Aggregate = "min"
    separator: str = "\n\n"
    outcome: Literal["require", "add", "ignore"] = "require"
    grader: str = "math"
    low: float = 0.0
    high: float = 10.0


class ProcessReward(Pipeline):
    """Grade the final answers, rate the steps; questions of which no pair can come are not rated."""

    RewardOptions = ProcessRewardOptions
    PairOptions = BestWorstOptions
    roles = ("process",)
    raters: ClassVar[Mapping[str, str]] = {"process": "process_reward"}

    def __init__(self, reward: ProcessRewardOptions, models: Mapping[str, Any], seed: int) -> None:
        super().__init__(reward, models, seed)
        if not reward.separator:
            raise UniDPOError("reward.separator: what stands between two steps cannot be empty")
        self.grade = None if reward.outcome == "ignore" else load_grader(reward.grader)

    def check(self, questions: Sequence[Question]) -> None:
        """See `Pipeline.check`."""
        if self.grade is not None:
            check_references(self.options.grader, questions)

    def reward(self, items: Sequence[Answered]) -> list[Scored | Failure]:
        """See `Pipeline.reward`."""
        graded = [self._graded(item) for item in items]
        worth_rating = [grades if self._comparable(list(grades.values())) else {} for grades in graded]
        requests = [
            Request(item.question.text, item.question.images)
            for item, grades in zip(items, worth_rating, strict=True)
            for _ in grades
        ]
        steps = [split_steps(text, self.options.separator) for grades in worth_rating for text in grades]
        ratings = iter(self.models["process"].rate_steps(requests, steps))
        return [
            collected((self._rated(text, next(ratings), grades[text]) for text in rated), self._counts(grades, rated))
            for grades, rated in zip(graded, worth_rating, strict=True)
        ]

    def _graded(self, item: Answered) -> dict[str, float | None]:
        return {text: self.grade(text, item.question) if self.grade else None for text in item.distinct}

    def _comparable(self, grades: Sequence[float | None]) -> bool:
        if self.options.outcome == "require":
            return len({grade or 0.0 for grade in grades}) > 1
        return len(grades) > 1

    def _rated(self, text: str, steps: list[float], grade: float | None) -> ScoredAnswer | Aside:
        process = aggregate(steps, self.options.aggregate)
        if not math.isfinite(process):
            return Aside(f"rated {process}", text)
        detail: Row = {"outcome": grade, "process": process, "steps": steps}
        detail |= {"required": True} if self.options.outcome == "require" else {}
        share = process if self.grade is None else ((grade or 0.0) + process) / 2
        return ScoredAnswer(text, self.on_scale(share), detail)

    def _counts(self, grades: Mapping[str, float | None], rated: Collection[str]) -> Row:
        right = sum(grade or 0.0 for grade in grades.values())
        ungraded = sum(grade is None for grade in grades.values()) if self.grade else 0
        return {"answers": len(grades), "right": right, "ungraded": ungraded, "rated": len(rated)}

    @classmethod
    def pair(cls, question_id: str, answers: Sequence[ScoredAnswer], options: Any, seed: int) -> list[Pair]:
        """See `Pipeline.pair`; where the outcome is required, only what is graded higher is better."""
        return choose_pairs(question_id, answers, options, seed, comparable=_better_outcome)

    @classmethod
    def summarize(cls, details: Sequence[Row]) -> Row:
        """See `Pipeline.summarize`."""
        total = {name: sum(detail[name] for detail in details) for name in ("answers", "right", "ungraded", "rated")}
        return {
            "share of right answers": total["right"] / max(total["answers"], 1),
            "answers without a grade": total["ungraded"],
            "answers rated": total["rated"],
        }


def split_steps(answer: str, separator: str) -> list[str]:
    """Return the steps of an answer, without blank ones and without white space around them; at least one."""
    return [step.strip() for step in answer.split(separator) if step.strip()] or [answer]


def aggregate(steps: Sequence[float], how: Aggregate) -> float:
    """Return an answer's process score in [0, 1] from P(right) of its steps."""
    if how == "product":
        return math.prod(steps)
    if how == "mean":
        return math.fsum(steps) / len(steps)
    return min(steps) if how == "min" else steps[-1]


def _better_outcome(better: ScoredAnswer, worse: ScoredAnswer) -> bool:
    if not better.detail.get("required"):
        return True
    return (better.detail["outcome"] or 0.0) > (worse.detail["outcome"] or 0.0)


PIPELINE = ProcessReward
