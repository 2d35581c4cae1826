"""One table of everything: what was asked, how it was judged, what came out, and how sure a difference is."""

import csv
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from uni_dpo.errors import plain
from uni_dpo.report.statistics import Difference, difference_interval
from uni_dpo.storage.writing import write_text
from uni_dpo.vlmeval.score import Score


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

    def values(self) -> dict[str, float]:
        """Return each row's own value, of which the score is the mean; none where it is no mean over rows."""
        return self.score.outcomes.values() if self.score and self.score.outcomes else {}


@dataclass(frozen=True)
class Results:
    """All lines of a run."""

    lines: Sequence[Line]
    vlmevalkit: str
    seed: int = 0

    @property
    def failures(self) -> list[Line]:
        """The lines that have no score."""
        return [line for line in self.lines if line.score is None]

    @cached_property
    def by_name(self) -> dict[tuple[str, str], Line]:
        """Each line by its model and its benchmark."""
        return {(line.model, line.benchmark): line for line in self.lines}

    def value(self, model: str, benchmark: str) -> float:
        """Return a score, or raise a KeyError where there is none."""
        if (score := self.by_name[model, benchmark].score) is None:
            raise KeyError((model, benchmark))
        return score.value

    @property
    def models(self) -> list[str]:
        """Their names, the one that the others are compared with first."""
        return list(dict.fromkeys(line.model for line in self.lines))

    @property
    def benchmarks(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(line.benchmark for line in self.lines))

    def difference(self, model: str, benchmark: str) -> Difference | None:
        """Return a model minus the first one, with its bootstrap interval; `None` where either has no score.

        There is no interval where VLMEvalKit's files do not show what the scores are made of.
        """
        return self._differences.get((model, benchmark))

    @cached_property
    def _differences(self) -> dict[tuple[str, str], Difference]:
        found = {}
        for name, line in self.by_name.items():
            first = self.by_name.get((self.models[0], line.benchmark))
            if first and first is not line and first.score and line.score:
                found[name] = _difference(first.score, line.score, self.seed)
        return found


def _difference(first: Score, other: Score, seed: int) -> Difference:
    value = other.value - first.value
    with suppress(ValueError):
        if first.outcomes is not None and other.outcomes is not None:
            return Difference(value, *difference_interval(first.outcomes, other.outcomes, seed=seed))
    return Difference(value)


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
        "metric": score and score.metric,
        "score": score and score.value,
        "difference": difference and difference.value,
        "low": difference and difference.low,
        "high": difference and difference.high,
        "judge": score and score.judge,
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
    limit = f"first {line.limit}" if line.limit else ""
    skipped = f"{line.skipped} bad left out" if line.skipped else ""
    notes = ", ".join(filter(None, (limit, skipped, "" if line.data == "official" else f"{line.data} data")))
    return f"{line.rows}" + (f" ({notes})" if notes else "")


def _notes(results: Results) -> list[str]:
    """What the reader has to know beside the scores, a line each."""
    notes = [f"{line.model} on {line.benchmark} failed: {line.reason}" for line in results.failures]
    for count, what in (
        ("cut", "were cut; raise max_new_tokens"),
        ("reasoned", "reason in <think>…</think>; only what stands outside is scored"),
    ):
        notes += [
            f"{line.model} on {line.benchmark}: {getattr(line, count):,} of {line.rows:,} answers {what}"
            for line in results.lines
            if getattr(line, count)
        ]
    classes = list(dict.fromkeys(line.wording for line in results.lines))
    if len(classes) > 1:
        notes.append(f"questions are worded by {' and '.join(classes)}, so compare models of one class only")
    return notes


def as_markdown(results: Results) -> str:
    """Return the table as Markdown, with what failed below it."""
    header, body = _cells(results)
    rows = [header, ["---"] * len(header), *body]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*table, *(f"\n{note}" for note in _notes(results))]) + "\n"


def as_rich_table(results: Results) -> Table:
    """Return the table for a terminal."""
    header, body = _cells(results)
    table = Table(box=box.SIMPLE_HEAD, caption=Text(plain("\n".join(_notes(results)))))
    for name in header:
        table.add_column(name, justify="left" if name in header[:3] else "right", overflow="fold")
    for row in body:
        table.add_row(*(Text(plain(cell)) for cell in row))  # names and reasons may hold brackets, which are no markup
    return table
