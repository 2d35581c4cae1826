"""One table of everything: what was asked, how it was judged, what came out, and how sure a difference is."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uni_dpo.errors import plain
from uni_dpo.storage.writing import write_text
from uni_dpo.vlmeval.score import Score, difference_interval

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Line:
    """One model on one benchmark."""

    model: str
    benchmark: str
    rows: int
    """Rows that were asked."""
    skipped: int
    """Bad rows that were left out."""
    limit: int | None
    data: str
    """`official`, `modified` or `own`."""
    prompt_style: str
    score: Score | None = None
    reason: str | None = None
    """Why there is no score."""
    cut: int = 0
    """Answers that the limit of tokens cut; they are scored as they are."""
    reasoned: int = 0
    """Answers with reasoning in `<think>…</think>`; what they say outside of it is scored."""
    wording: str = "Qwen2VLChat"
    """The class that worded the questions."""

    def scored(self, score: Score) -> "Line":
        """This line with its score."""
        return dataclasses.replace(self, score=score)

    def failed(self, reason: str) -> "Line":
        """This line with the reason why it has none."""
        return dataclasses.replace(self, reason=reason)


@dataclass(frozen=True)
class Difference:
    """A model against the first one, on one benchmark."""

    value: float
    low: float | None
    high: float | None
    """The bootstrap 95 % interval; none where VLMEvalKit's files do not show what the score is made of."""

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:+.2f}"
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Results:
    """All lines of a run."""

    lines: Sequence[Line]
    vlmevalkit: str
    seed: int = 0
    _differences: dict[tuple[str, str], Difference] = field(default_factory=dict, init=False, compare=False)

    @property
    def failures(self) -> list[Line]:
        """The lines that have no score."""
        return [line for line in self.lines if line.score is None]

    def value(self, model: str, benchmark: str) -> float:
        """Return a score.

        Raises:
            KeyError: there is none.
        """
        line = self._line(model, benchmark)
        if line is None or line.score is None:
            raise KeyError((model, benchmark))
        return line.score.value

    @property
    def models(self) -> list[str]:
        """Their names, the one that the others are compared with first."""
        return list(dict.fromkeys(line.model for line in self.lines))

    @property
    def benchmarks(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(line.benchmark for line in self.lines))

    def difference(self, model: str, benchmark: str) -> Difference | None:
        """Return a model minus the first one; `None` where either has no score."""
        key = (model, benchmark)
        if key not in self._differences:
            first, other = self._line(self.models[0], benchmark), self._line(model, benchmark)
            if first is None or other is None or first.score is None or other.score is None or first is other:
                return None
            self._differences[key] = _difference(first.score, other.score, self.seed)
        return self._differences[key]

    def _line(self, model: str, benchmark: str) -> Line | None:
        return next((x for x in self.lines if x.model == model and x.benchmark == benchmark), None)


def _difference(first: Score, other: Score, seed: int) -> Difference:
    value = other.value - first.value
    if first.outcomes is None or other.outcomes is None:
        return Difference(value, None, None)
    try:
        return Difference(value, *difference_interval(first.outcomes, other.outcomes, seed=seed))
    except ValueError:
        return Difference(value, None, None)


def write_results(results: Results, folder: Path) -> None:
    """Write `results.json`, `results.md` and `results.csv`; the same results give the same files."""
    records = [_record(results, line) for line in results.lines]
    content = {"vlmevalkit": results.vlmevalkit, "baseline": results.models[0], "results": records}
    write_text(folder / "results.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "results.md", as_markdown(results))
    table = io.StringIO()
    writer = csv.DictWriter(table, [key for key in records[0] if key != "metrics"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(records)
    write_text(folder / "results.csv", table.getvalue())


def _record(results: Results, line: Line) -> dict[str, Any]:
    score = line.score
    difference = results.difference(line.model, line.benchmark)
    return {
        "model": line.model,
        "benchmark": line.benchmark,
        "metric": score.metric if score else None,
        "score": score.value if score else None,
        "difference": difference.value if difference else None,
        "low": difference.low if difference else None,
        "high": difference.high if difference else None,
        "judge": score.judge if score else None,
        "rows": line.rows,
        "skipped": line.skipped,
        "cut": line.cut,
        "reasoned": line.reasoned,
        "limit": line.limit,
        "data": line.data,
        "prompt_style": line.prompt_style,
        "class": line.wording,
        "failed": line.reason,
        "metrics": dict(score.metrics) if score else {},
    }


def _cells(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that people read: a benchmark per row, a model per column."""
    first, *others = results.models
    header = ["benchmark", "metric", "judge", "rows", first]
    for model in others:
        header += [model, f"{model} − {first} [95 %]"]
    body = []
    for benchmark in results.benchmarks:
        lines = [line for line in results.lines if line.benchmark == benchmark]
        scored = next((line.score for line in lines if line.score), None)
        row = [benchmark, scored.metric if scored else "–", scored.judge if scored else "–", _rows(lines[0])]
        for line in lines:
            row.append(f"{line.score.value:.2f}" if line.score else "failed")
            if line.model != first:
                row.append(str(results.difference(line.model, benchmark) or "–"))
        body.append(row)
    return header, body


def _rows(line: Line) -> str:
    notes = [
        *([f"first {line.limit}"] if line.limit else []),
        *([f"{line.skipped} bad left out"] if line.skipped else []),
        *(["modified data"] if line.data == "modified" else []),
        *(["own data"] if line.data == "own" else []),
    ]
    return f"{line.rows}" + (f" ({', '.join(notes)})" if notes else "")


def _notes(results: Results) -> list[str]:
    """What the reader has to know beside the scores, a line each."""
    cut = [
        f"{line.model} on {line.benchmark}: {line.cut:,} of {line.rows:,} answers were cut; raise max_new_tokens"
        for line in results.lines
        if line.cut
    ]
    reasoned = [
        f"{line.model} on {line.benchmark}: {line.reasoned:,} of {line.rows:,} answers reason in <think>…</think>; "
        "only what stands outside is scored"
        for line in results.lines
        if line.reasoned
    ]
    failed = [f"{line.model} on {line.benchmark} failed: {line.reason}" for line in results.failures]
    classes = list(dict.fromkeys(line.wording for line in results.lines))
    unlike = [f"questions are worded by {' and '.join(classes)}, so compare models of one class only"]
    return [*failed, *cut, *reasoned, *(unlike if len(classes) > 1 else [])]


def as_markdown(results: Results) -> str:
    """Return the table as Markdown, with what failed below it."""
    header, body = _cells(results)
    rows = [header, ["---"] * len(header), *body]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join([text, *(f"\n{note}" for note in _notes(results))]) + "\n"


def as_rich_table(results: Results) -> "Table":
    """Return the table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, body = _cells(results)
    table = Table(box=box.SIMPLE_HEAD, caption=Text(plain("\n".join(_notes(results)))))
    for name in header:
        table.add_column(name, justify="left" if name in header[:3] else "right", overflow="fold")
    for row in body:
        table.add_row(*(Text(plain(cell)) for cell in row))  # names and reasons may hold brackets, which are no markup
    return table
