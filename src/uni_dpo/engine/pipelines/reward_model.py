"""Answers rated by a reward model, the best paired with the worst (on-policy pairs as in SimPO, arXiv 2405.14734)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from uni_dpo.engine.pairing import BestWorstOptions
from uni_dpo.engine.pipelines import Pipeline
from uni_dpo.engine.records import Answered, Aside, Row, Scored, ScoredAnswer
from uni_dpo.models.backends.base import Failure, Request


@dataclass(frozen=True)
class RatingOptions:
    """Nothing to set: an answer's score is what the model says."""


class RewardModelPipeline(Pipeline):
    """Score = the reward model's rating. A question whose answers are all alike is not rated: it makes no pair."""

    RewardOptions = RatingOptions
    PairOptions = BestWorstOptions
    roles = ("reward",)
    raters: ClassVar[Mapping[str, str]] = {"reward": "reward_model"}

    def reward(self, items: Sequence[Answered]) -> list[Scored | Failure]:
        """See `Pipeline.reward`."""
        rated = [item.distinct if len(item.distinct) > 1 else () for item in items]
        requests = [
            Request(asked.text, asked.images, system=asked.system or None, videos=asked.videos)
            for asked, texts in zip((item.question for item in items), rated, strict=True)
            for _ in texts
        ]
        ratings = iter(self.models["reward"].rate(requests, [text for texts in rated for text in texts]))
        return [_collect(texts, [next(ratings) for _ in texts]) for texts in rated]

    @classmethod
    def summarize(cls, details: Sequence[Row]) -> Row:
        """See `Pipeline.summarize`."""
        return {"questions whose answers are all alike": sum(detail["alike"] for detail in details)}


def _collect(texts: Sequence[str], ratings: Sequence[float]) -> Scored:
    answers, aside = [], []
    for text, rating in zip(texts, ratings, strict=True):
        if math.isfinite(rating):
            answers.append(ScoredAnswer(text, rating))
        else:
            aside.append(Aside(f"rated {rating}", text))
    return Scored(tuple(answers), tuple(aside), {"alike": not texts})


PIPELINE = RewardModelPipeline
