"""Answers scored by the implicit reward of a DPO-aligned model (arXiv 2305.18290, eq. 5; RLAIF-V's self-feedback)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from uni_dpo.engine.asking import load_template
from uni_dpo.engine.pairing import bound_mean_difference, distinct, drop_near_duplicates, make_pair, may_be_chosen
from uni_dpo.engine.pipelines import Pipeline
from uni_dpo.engine.records import Answered, Aside, Pair, Scored, ScoredAnswer, collected
from uni_dpo.models.backends.base import AnswerLogprob, Failure, Request
from uni_dpo.settings.options import Count, NotNegative, Positive, Share, added


@dataclass(frozen=True)
class DpoRewardOptions:
    """Settings under `reward:`.

    Attributes:
        beta: factor of the reward β · (log π_aligned − log π_reference).
        score: which of the two rewards is the pair's score: `sum` over the answer, or `mean` per token.
        prompt: the prompt under which answers are scored; gap {question}. Use that of the sampling.
    """

    beta: Positive = 0.1
    score: Literal["sum", "mean"] = "sum"
    prompt: str = "answer"


@dataclass(frozen=True)
class DpoRewardPairs:
    """Settings under `pairs:`.

    Attributes:
        choose: `ranked`: the best answer with the worst, the second best with the second worst …; `published`: each of
            the best with each of the worst, from the most unequal in rank on, as RLAIF-V pairs them.
        rank: chosen is among the best `rank` by both rewards, rejected among the worst `rank` by both.
        max_pairs_per_question: at most this many.
        max_word_difference: a pair's answers differ by fewer words than this.
        max_mean_word_difference: bound on |mean words of chosen − mean words of rejected| over the data set.
        similarity: answers alike beyond this (Jaccard of word 10-grams) count as one.
        allow_cut_answers: as in `PairOptions`.
    """

    choose: Literal["ranked", "published"] = "ranked"
    rank: Count = 3
    max_pairs_per_question: Count = 3
    max_word_difference: Count = 25
    max_mean_word_difference: NotNegative = 0.5
    similarity: Share = 0.9
    allow_cut_answers: bool = added(False)


class DpoReward(Pipeline):
    """Reward of each answer under an aligned and a reference model."""

    RewardOptions = DpoRewardOptions
    PairOptions = DpoRewardPairs
    roles = ("aligned", "reference")

    def reward(self, items: Sequence[Answered]) -> list[Scored | Failure]:
        """See `Pipeline.reward`."""
        template = load_template(self.options.prompt, gaps=("question",))
        answers = [text for item in items for text in item.distinct]
        requests = [
            Request(
                template.render(question=item.question.text),
                item.question.images,
                system=item.question.system or None,
                videos=item.question.videos,
            )
            for item in items
            for _ in item.distinct
        ]
        aligned = iter(self.models["aligned"].answer_logprobs(requests, answers))
        reference = iter(self.models["reference"].answer_logprobs(requests, answers))
        return [
            collected(self._scored(text, next(aligned), next(reference)) for text in item.distinct) for item in items
        ]

    def _scored(
        self, text: str, ours: AnswerLogprob | Failure, theirs: AnswerLogprob | Failure
    ) -> ScoredAnswer | Aside | Failure:
        if isinstance(ours, Failure):
            return ours
        if isinstance(theirs, Failure):
            return theirs
        if not ours.tokens or not theirs.tokens:
            return Aside("no tokens to score", text)
        total, mean = rewards(ours, theirs, self.options.beta)
        detail = {"sum": total, "mean": mean, "aligned": ours.total, "reference": theirs.total}
        return ScoredAnswer(text, total if self.options.score == "sum" else mean, detail)

    @classmethod
    def pair(cls, question_id: str, answers: Sequence[ScoredAnswer], options: DpoRewardPairs, seed: int) -> list[Pair]:
        """See `Pipeline.pair`; nothing is drawn, so `seed` is of no effect."""
        return rank_pairs(question_id, answers, options)

    @classmethod
    def balance(cls, pairs: Sequence[Pair], options: DpoRewardPairs) -> list[Pair]:
        """See `Pipeline.balance`."""
        return bound_mean_difference(pairs, options.max_mean_word_difference)


def rewards(aligned: AnswerLogprob, reference: AnswerLogprob, beta: float) -> tuple[float, float]:
    """Return β · (log π_aligned − log π_reference): summed over the answer, and per token.

    The two models may cut the answer into different numbers of tokens, so each is averaged over its own.
    """
    total = beta * (aligned.total - reference.total)
    mean = beta * (aligned.total / aligned.tokens - reference.total / reference.tokens)
    return total, mean


def rank_pairs(question_id: str, answers: Sequence[ScoredAnswer], options: DpoRewardPairs) -> list[Pair]:
    """Pair the best answers by both rewards with the worst by both, as `options.choose` has it."""
    choosable = may_be_chosen(options)
    by_sum = sorted(distinct(answers), key=lambda answer: (not choosable(answer), -answer.detail["sum"], answer.text))
    by_sum = drop_near_duplicates(by_sum, options.similarity)
    by_sum.sort(key=lambda answer: (-answer.detail["sum"], answer.text))
    by_mean = sorted(by_sum, key=lambda answer: (-answer.detail["mean"], answer.text))
    rank = min(options.rank, len(by_sum) // 2)
    if rank == 0:
        return []
    best = [answer for answer in by_sum[:rank] if answer in by_mean[:rank] and choosable(answer)]
    worst = [answer for answer in reversed(by_sum[-rank:]) if answer in by_mean[-rank:]]
    couples = product(best, worst) if options.choose == "published" else zip(best, worst, strict=False)
    pairs = [
        make_pair(question_id, better, worse)
        for better, worse in couples
        if better.score > worse.score
        and abs(len(better.text.split()) - len(worse.text.split())) < options.max_word_difference
    ]
    return pairs[: options.max_pairs_per_question]


PIPELINE = DpoReward
