"""Rules that turn scored answers into pairs, and the finished pairs on disk, registered and checked."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from uni_dpo.data.checks.preflight import preflight
from uni_dpo.data.dataset_info import register_entry
from uni_dpo.data.questions import Question
from uni_dpo.data.ranking import wide_enough
from uni_dpo.data.videos import Video
from uni_dpo.engine.asking import Template
from uni_dpo.engine.records import Pair, ScoredAnswer, wording
from uni_dpo.settings.options import Count, NotNegative, added, check_ranges
from uni_dpo.storage.writing import replacing, write_text

LengthBalance = Literal["off", "published", "both"]
Choose = Literal["any", "best_worst"]
Comparable = Callable[[ScoredAnswer, ScoredAnswer], bool]
"""(better, worse) → whether the two may make a pair."""
Choosable = Callable[[ScoredAnswer], bool]
"""Whether an answer may be the better one of a pair."""


@dataclass(frozen=True)
class PairOptions:
    """Settings under `pairs:`.

    Attributes:
        min_gap: least difference of scores within a pair.
        max_pairs_per_question: at most this many.
        choose: `any` two answers that far apart, drawn at random where there are too many, or the best answer with
            the worst, then the second best with the second worst … (`best_worst`).
        length_balance: see `balance_lengths`.
        allow_cut_answers: let an answer that the token limit cut be the better one of a pair.
    """

    min_gap: NotNegative = 1.0
    max_pairs_per_question: Count = 2
    choose: Choose = "any"
    length_balance: LengthBalance = "off"
    allow_cut_answers: bool = added(False)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class BestWorstOptions(PairOptions):
    """`PairOptions` for ratings of any scale: one pair per question, of the best answer and the worst."""

    min_gap: NotNegative = 0.0
    max_pairs_per_question: Count = 1
    choose: Choose = "best_worst"


def distinct(answers: Sequence[ScoredAnswer]) -> list[ScoredAnswer]:
    """Return answers without repeats: of those that differ in white space only, the first."""
    seen: dict[str, ScoredAnswer] = {}
    for answer in answers:
        seen.setdefault(wording(answer.text), answer)
    return list(seen.values())


def anything(*answers: ScoredAnswer) -> bool:
    """Let any answer be chosen, and any two make a pair."""
    return True


def may_be_chosen(options: Any) -> Choosable:
    """Tell who may be the better answer of a pair under these options: none that was cut, unless they allow it."""
    return anything if getattr(options, "allow_cut_answers", False) else lambda answer: not answer.cut


def choose_pairs(
    question_id: str,
    answers: Sequence[ScoredAnswer],
    options: PairOptions,
    seed: int,
    comparable: Comparable = anything,
) -> list[Pair]:
    """Return pairs within one question, as `options` have it; equal scores never make one."""
    kept, choosable = distinct(answers), may_be_chosen(options)
    drawing = options.choose == "any"
    pairs = [
        make_pair(question_id, better, worse)
        for better, worse in (product(filter(choosable, kept), kept) if drawing else _from_outside(kept, choosable))
        if wide_enough(better.score - worse.score, options.min_gap) and comparable(better, worse)
    ]
    if not drawing:
        return pairs[: options.max_pairs_per_question]
    if len(pairs) > options.max_pairs_per_question:
        pairs = random.Random(seed).sample(pairs, options.max_pairs_per_question)
    return sorted(pairs, key=_by_content)


def _from_outside(answers: list[ScoredAnswer], choosable: Choosable) -> Iterator[tuple[ScoredAnswer, ScoredAnswer]]:
    """The best answer with the worst, the second best with the second worst …; no answer is in two couples.

    Of answers with one score, the first by text counts as the better: nothing is drawn. An answer that may not be
    chosen leaves its place to the next best.
    """
    ordered = sorted(answers, key=lambda answer: (-answer.score, answer.text))
    places = [place for place, answer in enumerate(ordered) if choosable(answer)]
    couples = zip(places, range(len(ordered) - 1, -1, -1), strict=False)
    return ((ordered[better], ordered[worse]) for better, worse in couples if better < worse)


def make_pair(question_id: str, better: ScoredAnswer, worse: ScoredAnswer) -> Pair:
    """Return the pair of two scored answers."""
    return Pair(question_id, better.text, worse.text, better.score, worse.score)


def balance_lengths(pairs: Sequence[Pair], how: LengthBalance) -> list[Pair]:
    """Drop pairs of very unequal length so that length alone tells less about which answer is better.

    `published` is RLAIF-V's search (arXiv 2405.17220): for each ratio r = 0, 0.02 … 0.98 keep the pairs in
    which chosen is at most the share r shorter than rejected, and take the r for which the mean lengths (in
    words) of chosen and rejected differ least, relative to rejected. It can only drop pairs whose chosen is
    shorter; `both` searches the mirrored rule too. Of equally good outcomes the one that keeps most wins.
    """
    if how == "off" or not pairs:
        return list(pairs)
    shares = [[_shorter_by(pair.chosen, pair.rejected) for pair in pairs]]
    if how == "both":
        shares.append([_shorter_by(pair.rejected, pair.chosen) for pair in pairs])
    limits = [(each, step / 50) for each in shares for step in range(50)]
    candidates = ([p for p, share in zip(pairs, each, strict=True) if share <= limit] for each, limit in limits)
    kept = filter(None, candidates)
    return min(kept, key=lambda candidate: (length_imbalance(candidate), -len(candidate)), default=[])


def length_imbalance(pairs: Sequence[Pair]) -> float:
    """Return |mean words of chosen − mean words of rejected| ÷ mean words of rejected."""
    chosen = sum(len(pair.chosen.split()) for pair in pairs)
    rejected = sum(len(pair.rejected.split()) for pair in pairs)
    return abs(chosen - rejected) / rejected


def bound_mean_difference(pairs: Sequence[Pair], limit: float) -> list[Pair]:
    """Drop the most unequal pairs until |mean (words of chosen − words of rejected)| is at most `limit`."""
    kept = sorted(pairs, key=lambda pair: (pair.word_difference, *_by_content(pair)))
    total = sum(pair.word_difference for pair in kept)
    while kept and abs(total) > limit * len(kept):
        total -= kept.pop(-1 if total > 0 else 0).word_difference
    return sorted(kept, key=_by_content)


WORDS = 10
"""The n of the word n-grams by which answers are compared; shorter ones by n-grams of their own length."""


def drop_near_duplicates(answers: Sequence[ScoredAnswer], threshold: float) -> list[ScoredAnswer]:
    """Return answers of which none is like an earlier one: Jaccard similarity of word n-grams at most `threshold`."""
    kept: list[ScoredAnswer] = []
    for answer in answers:
        if all(_similarity(answer.text.split(), earlier.text.split()) <= threshold for earlier in kept):
            kept.append(answer)
    return kept


def _similarity(a: list[str], b: list[str]) -> float:
    size = max(1, min(WORDS, len(a), len(b)))
    left, right = ({tuple(text[start : start + size]) for start in range(len(text) - size + 1)} for text in (a, b))
    union = left | right
    return len(left & right) / len(union) if union else 1.0


def _shorter_by(text: str, other: str) -> float:
    """The share of `other`'s words that a text has fewer; below 0 where it has more."""
    words, others = len(text.split()), len(other.split())
    return (others - words) / others if others else 0.0


def _by_content(pair: Pair) -> tuple[str, str, str]:
    return pair.question_id, pair.chosen, pair.rejected


_SAME = ("chosen", "rejected", "images", "videos", "score_chosen", "score_rejected")
COLUMNS = {"prompt": "instruction", **{name: name for name in _SAME}}


def write_dataset(
    folder: Path, name: str, questions: Mapping[str, Question], pairs: Sequence[Pair], instruction: Template
) -> tuple[Path, list[str]]:
    """Write `pairs.json`, `pairs.parquet` and the entry `name` in `dataset_info.json`, and check the result.

    Args:
        folder: of the data set; images and videos inside it are named relative to it.
        instruction: the prompt under which the pairs are trained on, with the gap {question}.

    Returns:
        The path of `pairs.json` and the preflight's warnings.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _rows(folder, questions, pairs, instruction)
    path = folder / "pairs.json"
    write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    with replacing(path.with_suffix(".parquet")) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    unseen = {medium for medium in ("images", "videos") if not any(row.get(medium) for row in rows)}
    columns = {key: value for key, value in COLUMNS.items() if key not in unseen}
    register_entry(name, {"file_name": path.name, "ranking": True, "columns": columns}, folder)
    return path, preflight([name], folder).warnings


def _rows(
    folder: Path, questions: Mapping[str, Question], pairs: Sequence[Pair], instruction: Template
) -> list[dict[str, Any]]:
    rows = []
    numbers: Counter[str] = Counter()
    filmed = any(questions[pair.question_id].videos for pair in pairs)
    for pair in pairs:
        question = questions[pair.question_id]
        shown = "<image>" * len(question.images) + "<video>" * len(question.videos)
        rows.append(
            {
                "id": f"{question.id}-{numbers[question.id]}",
                "instruction": shown + instruction.render(question=question.text),
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "images": [_relative(image, folder) for image in question.images],
                **({"videos": [_relative(video, folder) for video in question.videos]} if filmed else {}),
                "score_chosen": pair.score_chosen,
                "score_rejected": pair.score_rejected,
                "question_id": question.id,
            }
        )
        numbers[question.id] += 1
    return rows


def _relative(shown: Video, folder: Path) -> Any:
    if not isinstance(shown, str):
        return [_relative(frame, folder) for frame in shown]
    path, root = Path(shown), folder.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
