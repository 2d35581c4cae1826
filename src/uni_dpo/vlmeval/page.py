"""The page of an evaluation: scores with intervals, paired differences, and what changed row by row."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.graders.grading import without_reasoning
from uni_dpo.graders.multiple_choice import pick_option
from uni_dpo.report.page import Thumbnails, pair_columns, write_page
from uni_dpo.report.statistics import QUANTILE, Difference, holm, mean_standard_error, paired_difference
from uni_dpo.vlmeval.results import Line, Results

GROUPS = ("right to wrong", "wrong to right", "differs", "same", "unreadable")
RULES = {
    "right to wrong": {
        "en": "the first model's reply scores higher than the other's",
        "zh": "第一个模型的回答得分更高",
    },
    "wrong to right": {
        "en": "the other model's reply scores higher than the first one's",
        "zh": "另一个模型的回答得分更高",
    },
    "differs": {"en": "the replies differ and score the same", "zh": "回答不同，得分相同"},
    "same": {"en": "the replies are the same", "zh": "回答相同"},
    "unreadable": {
        "en": "a reply is empty, picks no option, or says neither yes nor no",
        "zh": "回答为空、未选任何选项，或既非是也非否",
    },
}
ROWS = 20_000
"""Rows on a page at most; those that changed come first."""
SHOWN = 600
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class AnsweredRow:
    """One row of a benchmark with a model's reply."""

    index: str
    question: str
    """As the model was asked."""
    answer: str
    """The reference."""
    reply: str
    images: tuple[str, ...]
    category: str
    """The benchmark's own; empty where it has none."""
    readable: bool
    """Whether an answer could be read from the reply."""


Answered = Mapping[tuple[str, str], Sequence[AnsweredRow]]
"""(model, benchmark) → its rows."""


def answered_rows(questions: Sequence[Any], frame: Any, replies: Mapping[str, str], kind: str) -> list[AnsweredRow]:
    """Put questions (`rows.AskedRow`), their rows in the benchmark's table and replies (by index) together.

    `kind` is VLMEvalKit's type of the benchmark: `MCQ`, `Y/N` or `VQA`.
    """
    rows = {str(row["index"]): row for row in frame.drop(columns="image", errors="ignore").to_dict("records")}
    found = []
    for asked in questions:
        row, reply = rows[asked.index], replies.get(asked.index, "")
        found.append(
            AnsweredRow(
                asked.index,
                "\n".join(item["value"] for item in asked.message if item["type"] == "text"),
                str(row.get("answer", "")),
                reply,
                tuple(item["value"] for item in asked.message if item["type"] == "image"),
                "" if row.get("category") is None else str(row["category"]),
                readable(without_reasoning(reply) or "", row, kind),
            )
        )
    return found


def readable(reply: str, row: Mapping[str, Any], kind: str) -> bool:
    """Tell whether an answer can be read from a reply."""
    if not reply.strip():
        return False
    if kind == "MCQ":
        options = {letter: str(row[letter]) for letter in "ABCDEFGHIJ" if isinstance(row.get(letter), str)}
        return pick_option(reply, options) is not None
    return kind != "Y/N" or len({word.lower() for word in _YES_NO.findall(reply)}) == 1


def write_evaluation_page(results: Results, answered: Answered, folder: Path) -> Path:
    """Write `report.html` into an evaluation's folder."""
    thumbnails = Thumbnails(side=240)
    first, *others = results.models
    rows = sorted(_compared(results, answered, first, others), key=_place)
    data = {
        "evaluation": {
            "rows": _table(results, answered),
            "categories": _categories(results, answered),
            "judge": ", ".join(sorted({line.score.judge for line in results.lines if line.score})),
        },
        "pairs": pair_columns(rows[:ROWS], thumbnails, SHOWN),
        "images": thumbnails.images,
        "groups": list(GROUPS),
        "rules": RULES,
        "answers": [first, ", ".join(others) or first],
    }
    return write_page(folder / "report.html", f"{', '.join(results.models)}: {', '.join(results.benchmarks)}", data)


def compare_rows(first: Line, other: Line) -> Difference | None:
    """Return the paired difference of two models on one benchmark, where both scores are means over the same rows."""
    before, after = first.values(), other.values()
    if before.keys() != after.keys() or len(before) < 2:
        return None
    return paired_difference(list(before.values()), [after[unit] for unit in before])


def _table(results: Results, answered: Answered) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in results.lines:
        baseline = next(one for one in results.lines if one.benchmark == line.benchmark)
        paired = compare_rows(baseline, line) if line is not baseline else None
        bootstrap = results.difference(line.model, line.benchmark)
        sure = paired or bootstrap
        found.append(
            {
                "model": line.model,
                "benchmark": line.benchmark,
                "score": line.score and line.score.value,
                "interval": _interval(line),
                "count": line.rows,
                "difference": bootstrap and bootstrap.value,
                "difference_interval": None if sure is None or sure.low is None else [sure.low, sure.high],
                "p": paired and paired.p,
                "p_holm": None,
                "smallest": paired and paired.smallest,
                "unreadable": sum(not row.readable for row in answered.get((line.model, line.benchmark), ())),
            }
        )
    tested = [row for row in found if row["p"] is not None]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    return found


def _interval(line: Line) -> list[float] | None:
    values = line.values()
    if line.score is None or not values:
        return None
    reach = QUANTILE * mean_standard_error(list(values.values()))
    return [line.score.value - reach, line.score.value + reach]


def _categories(results: Results, answered: Answered) -> list[dict[str, Any]]:
    found = []
    for line in results.lines:
        values, parts = line.values(), defaultdict(list)
        for row in answered.get((line.model, line.benchmark), ()):
            if row.category and row.index in values:
                parts[row.category].append(values[row.index])
        for name, inside in sorted(parts.items()):
            whose = {"benchmark": line.benchmark, "model": line.model, "category": name}
            found.append({**whose, "score": sum(inside) / len(inside), "count": len(inside)})
    return found


Compared = dict[str, Any]


def _compared(results: Results, answered: Answered, first: str, others: Sequence[str]) -> Iterator[Compared]:
    """The rows of each benchmark as the first model and another answered them, or as the only one did."""
    for benchmark in results.benchmarks:
        for other in others or [first]:
            names = (first, benchmark), (other, benchmark)
            before, after = ({row.index: row for row in answered.get(name, ())} for name in names)
            first_values, other_values = (results.by_name[name].values() for name in names)
            for index in (index for index in before if index in after):
                row = _pair(before[index], after[index], first_values.get(index), other_values.get(index))
                note = f"reference: {before[index].answer}; {other}"
                yield {**row, "pair": f"{benchmark}, {index}", "note": note}


def _pair(before: AnsweredRow, after: AnsweredRow, score: float | None, other: float | None) -> Compared:
    gain = 0.0 if score is None or other is None else other - score
    bits = 1 << (0 if gain < 0 else 1 if gain > 0 else 2 if before.reply != after.reply else 3)
    return {
        "question": before.question,
        "chosen": before.reply,
        "rejected": after.reply,
        "score_chosen": score,
        "score_rejected": other,
        "images": before.images,
        "groups": bits | (not (before.readable and after.readable)) << 4,
    }


_FIRST = {1: 0, 2: 0, 16: 1, 4: 2, 8: 3}
"""Bit of a group → its place in the order of the rows."""


def _place(row: Compared) -> int:
    return min(place for bit, place in _FIRST.items() if row["groups"] & bit)
