"""One strong model as judge: it grades answers on a rubric, or compares them two by two in both orders."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from uni_dpo.engine.asking import load_template
from uni_dpo.engine.pipelines import Pipeline
from uni_dpo.engine.records import Answered, Aside, Row, Scored, ScoredAnswer, collected
from uni_dpo.models.backends.base import Backend, Failure
from uni_dpo.settings.options import Count

Preferred = Literal["first", "second", "tie"]
_PREFERRED: Mapping[str, Preferred] = {"A": "first", "B": "second", "TIE": "tie", "DRAW": "tie"}


@dataclass(frozen=True)
class JudgeOptions:
    """Settings under `reward:`.

    Attributes:
        method: `grade` (one request per answer) or `compare` (two per pair of answers).
        low, high: range of the scores; grades 0 … 10 and shares of wins 0 … 1 are mapped onto it.
        grade_prompt: gaps {question} {answer}; the reply ends with `Score: 0…10`.
        compare_prompt: gaps {question} {first} {second}; the reply ends with `Verdict: A`, `B` or `tie`.
    """

    method: Literal["grade", "compare"] = "grade"
    low: float = 0.0
    high: float = 10.0
    grade_prompt: str = "grade"
    compare_prompt: str = "compare"
    max_tokens: Count = 512
    attempts: Count = 2


class Judge(Pipeline):
    """Scores by one judge; the judge's own words are kept in each answer's detail."""

    RewardOptions = JudgeOptions
    roles = ("judge",)

    def __init__(self, reward: JudgeOptions, models: Mapping[str, Backend], seed: int) -> None:
        super().__init__(reward, models, seed)
        self.grade_template = load_template(reward.grade_prompt, gaps=("answer",))
        self.compare_template = load_template(reward.compare_prompt, gaps=("first", "second"))

    def reward(self, items: Sequence[Answered]) -> list[Scored | Failure]:
        """See `Pipeline.reward`."""
        return self._grade(items) if self.options.method == "grade" else self._compare(items)

    @classmethod
    def undecided(cls, answers: Sequence[ScoredAnswer]) -> str | None:
        """See `Pipeline.undecided`: the judge is named."""
        if (found := super().undecided(answers)) is None:
            return None
        return f"{found.partition(':')[0]}: the judge does not tell them apart"

    def _grade(self, items: Sequence[Answered]) -> list[Scored | Failure]:
        slots = [(item, text) for item in items for text in item.distinct]
        requests = [
            self.request(
                self.grade_template.render(question=item.question.text, answer=text),
                item.question.images,
                item.question.videos,
            )
            for item, text in slots
        ]
        replies = iter(self.put("judge", requests, parse_grade, "score"))
        return [collected(self._graded(text, next(replies)) for text in item.distinct) for item in items]

    def _graded(self, text: str, reply: Any) -> ScoredAnswer | Aside | Failure:
        if isinstance(reply, Failure | Aside):
            return reply
        grade, reasons = reply
        return ScoredAnswer(text, self.on_scale(grade / 10), {"grade": grade, "reasons": reasons})

    def _compare(self, items: Sequence[Answered]) -> list[Scored | Failure]:
        slots = [
            (item, orders)
            for item in items
            for a, b in combinations(range(len(item.distinct)), 2)
            for orders in ((a, b), (b, a))
        ]
        requests = [
            self.request(
                self.compare_template.render(
                    question=item.question.text, first=item.distinct[first], second=item.distinct[second]
                ),
                item.question.images,
                item.question.videos,
            )
            for item, (first, second) in slots
        ]
        replies = iter(self.put("judge", requests, parse_verdict, "verdict"))
        return [self._compared(item.distinct, replies) for item in items]

    def _compared(self, answers: Sequence[str], replies: Iterator[Any]) -> Scored | Failure:
        both = {pair: (next(replies), next(replies)) for pair in combinations(range(len(answers)), 2)}
        unusable = [reply for pair in both.values() for reply in pair if isinstance(reply, Failure | Aside)]
        verdicts = {pair: said for pair, said in both.items() if not {*said} & {*unusable}}
        shares = win_shares(len(answers), verdicts)
        scored = [
            ScoredAnswer(text, self.on_scale(share), {"win_share": share})
            for text, share in zip(answers, shares, strict=True)
            if share is not None
        ]
        return collected([*scored, *unusable], position_counts(verdicts.values()))

    @classmethod
    def summarize(cls, details: Sequence[Row]) -> Row:
        """Return position bias over the whole data set: see `position_bias`."""
        totals: Counter[str] = Counter()
        for detail in details:
            totals.update(detail)
        return position_bias(totals) if totals.get("pairs") else {}


def parse_grade(reply: str) -> tuple[float, str] | None:
    """Grade (0 … 10) and reasons of a reply that ends with `Score: n`."""
    reasons, last = _last_line(reply)
    match = re.fullmatch(
        r"(?:(.*[.!?;。:])\s*)?(?:(?:final|overall|total)\s+)?(?:score|rating|评分|得分|分数|打分)\s*"
        r"(?:0 ?[-–] ?10\s*)?[:=]?\s*(\d+(?:\.\d+)?)\s*(?:/\s*10|out of 10|points?|分)?\s*[.,;。]?",
        last,
        re.IGNORECASE,
    )
    if match is None or float(match.group(2)) > 10:
        return None
    reasons = [*reasons, match.group(1) or ""]
    return float(match.group(2)), " ".join(line.strip() for line in reasons if line.strip())


def parse_verdict(reply: str) -> Preferred | None:
    """Return what the end of a reply, `Verdict: A`, `B` or `tie`, prefers."""
    match = re.fullmatch(
        r"(?:.*[.!?;。:]\s*)?(?:(?:final|overall)\s+)?(?:verdict|结论)\s*[:=]?\s*(?:answer\s+)?(A|B|tie|draw)\s*[.。]?",
        _last_line(reply)[1],
        re.IGNORECASE,
    )
    return _PREFERRED[match.group(1).upper()] if match else None


def _last_line(reply: str) -> tuple[list[str], str]:
    """The lines of a reply, and the last that says something, without Markdown, quotes and brackets."""
    lines = [line.strip() for line in reply.splitlines()]
    bare = [re.sub(r"\\boxed|[*_`#\[\]<>(){}$\"]", "", unicodedata.normalize("NFKC", line)).strip() for line in lines]
    filled = [place for place, line in enumerate(bare) if line]
    return (lines[: filled[-1]], bare[filled[-1]]) if filled else ([], "")


def win_shares(answers: int, verdicts: Mapping[tuple[int, int], tuple[Preferred, Preferred]]) -> list[float | None]:
    """Return share of its comparisons that each answer wins; None for an answer that was never compared.

    Args:
        verdicts: (a, b) → verdict with a first, verdict with b first. A pair counts 1 to 0 only if both orders
            prefer the same answer and ½ to ½ otherwise, so a judge that goes by position moves no score.
    """
    points: list[list[float]] = [[] for _ in range(answers)]
    for (a, b), (one, other) in verdicts.items():
        share = {("first", "second"): 1.0, ("second", "first"): 0.0}.get((one, other), 0.5)
        points[a].append(share)
        points[b].append(1 - share)
    return [sum(own) / len(own) if own else None for own in points]


def position_counts(verdicts: Any) -> Row:
    """Tell how often the judge preferred the first, the second, or contradicted itself when the order was turned."""
    pairs = list(verdicts)
    said = [verdict for pair in pairs for verdict in pair]
    counts = {name: said.count(name) for name in ("first", "second", "tie")}
    return {"pairs": len(pairs), **counts, "contradicted": sum(one == other != "tie" for one, other in pairs)}


def position_bias(totals: Mapping[str, int]) -> Row:
    """Return `bias`: (first − second) ÷ all verdicts, 0 for a fair judge; `contradicted`: share of pairs."""
    return {
        "pairs": totals["pairs"],
        "bias": (totals["first"] - totals["second"]) / (2 * totals["pairs"]),
        "contradicted": totals["contradicted"] / totals["pairs"],
    }


PIPELINE = Judge
