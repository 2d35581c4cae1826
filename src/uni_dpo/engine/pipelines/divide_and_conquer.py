"""Answers split into claims, each claim checked against the image (after RLAIF-V, arXiv 2405.17220)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from uni_dpo.engine.asking import Check, listed_lines, load_template
from uni_dpo.engine.pairing import LengthBalance, PairOptions
from uni_dpo.engine.pipelines import ENOUGH_TO_COMPARE, Pipeline
from uni_dpo.engine.records import Answered, Aside, Scored, ScoredAnswer, collected
from uni_dpo.models.backends.base import Backend, Failure
from uni_dpo.settings.options import Count, Positive
from uni_dpo.settings.registry import find

NOTHING_TOLD = 0.05
"""A checker whose P(yes) of all claims lie this close together does not tell true from false."""


@dataclass(frozen=True)
class DivideAndConquerOptions:
    """Settings under `reward:`.

    Attributes:
        score: `refuted` (published: one step down per refuted claim) or `soft` (mean P(yes)).
        low, high: range of the scores.
        points_per_refuted: size of the step of `refuted`.
        max_claims: claims of one answer that are checked; those beyond are left out.
        checker: registered name, or `package.module:Class`.
        split_prompt, ask_prompt, check_prompt: built-in names or files; gaps {question} {answer}, {claim}, {question}.
        attempts: how often an unusable reply is asked for.
    """

    score: Literal["refuted", "soft"] = "refuted"
    low: float = 0.0
    high: float = 10.0
    points_per_refuted: Positive = 1.0
    max_claims: Count = 20
    checker: str = "first_token"
    split_prompt: str = "split"
    ask_prompt: str = "ask"
    check_prompt: str = "check"
    max_tokens: Count = 512
    attempts: Count = 2


@dataclass(frozen=True)
class DivideAndConquerPairs(PairOptions):
    """`PairOptions` with the published balance of lengths."""

    length_balance: LengthBalance = "published"


@dataclass
class _Claim:
    claim: str
    question: str = ""
    p_yes: float = 0.0


@dataclass
class _Progress:
    """One answer on its way through split, ask and check."""

    item: Answered
    text: str
    claims: list[_Claim] = field(default_factory=list)
    unusable: list[Failure | Aside] = field(default_factory=list)


_Slot = tuple[_Progress, _Claim]


class DivideAndConquer(Pipeline):
    """Split → ask → check → score."""

    RewardOptions = DivideAndConquerOptions
    PairOptions = DivideAndConquerPairs
    roles = ("splitter", "asker")
    read_only = ("splitter", "asker")

    def __init__(self, reward: DivideAndConquerOptions, models: Mapping[str, Backend], seed: int) -> None:
        super().__init__(reward, models, seed)
        self.split_template = load_template(reward.split_prompt, gaps=("answer",))
        self.ask_template = load_template(reward.ask_prompt, gaps=("claim",))
        check_template = load_template(reward.check_prompt, gaps=("question",))
        self.checker = find("checker", reward.checker)(models, check_template, seed)

    @classmethod
    def reward_roles(cls, options: DivideAndConquerOptions) -> tuple[str, ...]:
        """See `Pipeline.reward_roles`."""
        return cls.roles + tuple(find("checker", options.checker).roles)

    def reward(self, items: Sequence[Answered]) -> list[Scored | Failure]:
        """See `Pipeline.reward`."""
        progress = [[_Progress(item, text) for text in item.distinct] for item in items]
        everything = [answer for answers in progress for answer in answers]
        self._split(everything)
        self._fill(everything, "question", self._asked)
        self._fill(everything, "p_yes", self._checked)
        return [self._collect(answers) for answers in progress]

    @classmethod
    def undecided(cls, answers: Sequence[ScoredAnswer]) -> str | None:
        """See `Pipeline.undecided`: here by P(yes) of the claims."""
        said = [claim["p_yes"] for answer in answers for claim in answer.detail["claims"]]
        if len(said) < ENOUGH_TO_COMPARE or (high := max(said)) - (low := min(said)) > NOTHING_TOLD:
            return None
        between = f"between {low:.2f} and {high:.2f}"
        return f"the checker says P(yes) {between} for all {len(said):,} claims: it does not know"

    def _split(self, answers: Sequence[_Progress]) -> None:
        requests = [
            self.request(self.split_template.render(question=answer.item.question.text, answer=answer.text))
            for answer in answers
        ]
        for answer, claims in zip(answers, self.put("splitter", requests, parse_claims, "claims"), strict=True):
            if isinstance(claims, Failure | Aside):
                answer.unusable.append(claims)
            else:
                answer.claims = [_Claim(claim) for claim in claims[: self.options.max_claims]]

    def _fill(
        self, answers: Sequence[_Progress], gap: str, replies_to: Callable[[Sequence[_Slot]], Sequence[Any]]
    ) -> None:
        """Put what a model says of each claim in its place; a claim of which it says nothing counts for nothing."""
        slots = [(answer, claim) for answer in answers for claim in answer.claims]
        for (answer, claim), reply in zip(slots, replies_to(slots), strict=True):
            if isinstance(reply, Failure | Aside):
                answer.claims = [kept for kept in answer.claims if kept is not claim]
                answer.unusable.append(reply)
            else:
                setattr(claim, gap, reply)

    def _asked(self, slots: Sequence[_Slot]) -> Sequence[Any]:
        requests = [self.request(self.ask_template.render(claim=claim.claim)) for _, claim in slots]
        return self.put("asker", requests, parse_question, "question")

    def _checked(self, slots: Sequence[_Slot]) -> Sequence[Any]:
        asked = [(claim.question, answer.item.question) for answer, claim in slots]
        return self.checker.check([Check(claim, question.images, question.videos) for claim, question in asked])

    def _collect(self, answers: Sequence[_Progress]) -> Scored | Failure:
        found: list[ScoredAnswer | Aside | Failure] = []
        for answer in answers:
            found += answer.unusable
            if answer.claims:
                p_yes = [claim.p_yes for claim in answer.claims]
                detail = {"claims": [asdict(claim) for claim in answer.claims]}
                found.append(ScoredAnswer(answer.text, score(p_yes, self.options), detail))
        return collected(found)


def score(p_yes: Sequence[float], options: DivideAndConquerOptions) -> float:
    """Return the score of an answer from P(yes) of each of its claims.

    `refuted`: high − points · (number of claims with P(yes) < 0.5), not below low. `soft`: the mean P(yes)
    mapped onto low … high.
    """
    if options.score == "soft":
        return options.low + (options.high - options.low) * sum(p_yes) / len(p_yes)
    refuted = sum(probability < 0.5 for probability in p_yes)
    return max(options.low, options.high - options.points_per_refuted * refuted)


def parse_claims(reply: str) -> list[str] | None:
    """Return the claims of a reply of which every line is `- claim` (or `1. claim`), headings aside.

    Repeats count once.
    """
    claims, listed = listed_lines(reply)
    return list(dict.fromkeys(claims)) if claims and listed else None


def parse_question(reply: str) -> str | None:
    """Return the one line of a reply that is a single question, with or without a heading and a bullet."""
    lines, _ = listed_lines(reply)
    return lines[0] if len(lines) == 1 and len(lines[0]) > 1 and lines[0][-1] in "?？" else None


PIPELINE = DivideAndConquer
