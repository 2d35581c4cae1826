"""Answers rated by a reward model, the best paired with the worst (on-policy pairs as in SimPO, arXiv 2405.14734)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from uni_dpo.engine.pairing import BestWorstOptions
from uni_dpo.engine.pipelines import Pipeline
from uni_dpo.engine.records import Answered, Aside, Row, Scored, ScoredAnswer, collected
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
        return [collected((_rated(text, next(ratings)) for text in texts), {"alike": not texts}) for texts in rated]

    @classmethod
    def summarize(cls, details: Sequence[Row]) -> Row:
        """See `Pipeline.summarize`."""
        return {"questions whose answers are all alike": sum(detail["alike"] for detail in details)}


def _rated(text: str, rating: float) -> ScoredAnswer | Aside:
    return ScoredAnswer(text, rating) if math.isfinite(rating) else Aside(f"rated {rating}", text)


PIPELINE = RewardModelPipeline
