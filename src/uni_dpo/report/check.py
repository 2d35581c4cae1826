"""How the findings of a check are shown: tables in a terminal, and a page with histograms."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from uni_dpo.data.checks.audit import QUANTILES, Audit, Repeats, Spread
from uni_dpo.data.checks.check import CheckReport
from uni_dpo.data.faults import SHOWN_FAULTS, Fault, shown
from uni_dpo.report.page import write_page

Cells = tuple[str, ...]
_NUMBERS = ("mean", *(f"{quantile:.0%}" for quantile in QUANTILES))
_SPREAD: Cells = ("", *_NUMBERS)


def sections(report: CheckReport) -> Iterator[tuple[str, Cells, list[Cells]]]:
    """Yield the report as tables: title, header, rows."""
    rows: list[Cells]
    usable = "usable rows before the repair" if report.fixed else "usable rows"
    summary: list[Cells] = [("rows", f"{report.rows:,}"), (usable, f"{report.usable:,}")]
    summary.append(("faults", f"{sum(report.fault_counts.values()):,}"))
    if report.stopped:
        summary.append(("stopped", report.stopped))
    summary += [("warning", line) for line in report.warnings]
    summary += [("repaired", f"{what}, in {count:,} rows") for what, count in report.repairs.items()]
    if report.fixed:
        summary += [("good rows", str(report.fixed[0])), ("the rest, with reasons", str(report.fixed[1]))]
    yield report.dataset, ("", ""), summary
    if report.fault_counts:
        yield "Faults", ("kind", "count"), [(kind, f"{count:,}") for kind, count in report.fault_counts.most_common()]
        faults = [*report.whole, *report.faults][:SHOWN_FAULTS]
        of_several = len({fault.file for fault in faults}) > 1 or (report.entry.path or Path()).is_dir()
        rows = [(_named("row", f.row), _named("line", f.line), _what(f, of_several)) for f in faults]
        yield "The first faults", ("", "", "what"), rows
    if report.audit.pairs:
        yield from _audit_sections(report.audit)
    if (lengths := report.lengths) is not None:
        spreads = {"prompt, with images and videos": lengths.prompt, "images and videos": lengths.image}
        yield "Tokens", _SPREAD, _spread_rows(spreads | {"longer answer": lengths.answer})
        cut = {"": lengths.cut, " within an image or a video": lengths.image_cut}
        rows = [(f"pairs that are cut{where}", f"{share:.2%}") for where, share in cut.items()]
        yield f"cutoff_len {lengths.cutoff_len:,}", ("", ""), rows


def _named(what: str, number: int | None) -> str:
    return "" if number is None else f"{what} {number}"


def _what(fault: Fault, of_several: bool) -> str:
    name = "" if fault.id is None else f"id {shown(fault.id)}"
    file = str(fault.file) if fault.file and (of_several or fault.row is None) else ""
    place = ", ".join(filter(None, (file, name, fault.field)))
    text = f"{place}: {fault.found}" if place else fault.found
    return f"{text}; {fault.advice}" if fault.advice else text


def _audit_sections(audit: Audit) -> Iterator[tuple[str, Cells, list[Cells]]]:
    yield (
        "Pairs",
        ("", ""),
        [
            ("images", f"{audit.images:,} ({audit.distinct_images:,} distinct paths)"),
            ("duplicates", _repeats(audit.duplicates)),
            ("contradictions (answers swapped)", _repeats(audit.contradictions)),
            ("identical answers", f"{audit.identical.count:,}"),
            ("chosen − rejected, mean length", f"{audit.length_bias:+.1f} characters"),
            ("the longer answer is the chosen one", f"{audit.longer_is_chosen:.1%} (50 % is no bias)"),
        ],
    )
    spreads = {"chosen length": audit.chosen_characters, "rejected length": audit.rejected_characters}
    if audit.margins.count:
        spreads |= {"chosen score": audit.score_chosen, "rejected score": audit.score_rejected}
        spreads |= {"margin": audit.margins, f"w_qual, η = {audit.qual_eta:g}": audit.quality_weights}
    yield "Distributions", _SPREAD, _spread_rows(spreads)
    if audit.margins.count:
        yield (
            "Scores",
            ("", ""),
            [
                ("pairs with scores", f"{audit.margins.count:,}"),
                (f"chosen score ≥ τ_good = {audit.tau_good:g}", f"{audit.above_tau_good:.1%}"),
                ("equal scores", f"{audit.tied_scores:.1%}"),
                ("chosen score below the rejected one", f"{audit.inverted_scores:.1%}"),
            ],
        )


def _spread_rows(spreads: Mapping[str, Spread]) -> list[Cells]:
    return [(name, *map(_short, (spread.mean, *spread.quantiles))) for name, spread in spreads.items()]


def _short(value: float) -> str:
    """A number in at most eight characters."""
    if math.isnan(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _repeats(repeats: Repeats) -> str:
    examples = ", ".join(f"{row} of {earlier}" for earlier, row in repeats.examples)
    return f"{repeats.count:,}" + (f" (rows {examples})" if examples else "")


def tables(report: CheckReport) -> Iterator[Table]:
    """Yield the report for a terminal, as Rich tables."""
    for title, header, rows in sections(report):
        table = Table(
            title=Text(title), title_justify="left", show_header=any(header), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        # 80 columns hold six numbers of eight characters beside their name
        kept = [index for index, name in enumerate(header) if len(header) <= 7 or name not in ("25%", "75%")]
        for index in kept:
            number = header[index] in ("count", *_NUMBERS)
            table.add_column(header[index], justify="right" if number else "left", overflow="fold", no_wrap=not index)
        for row in rows:
            table.add_row(*(Text(row[index]) for index in kept))
        yield table


def write_check_page(file: str | Path, report: CheckReport) -> Path:
    """Write the report as a page: the tables, and histograms of scores and margins."""
    titled = [{"title": title, "header": header, "rows": rows} for title, header, rows in sections(report)]
    histograms = list(_histograms(report.audit)) if report.audit.margins.count else []
    return write_page(file, report.dataset, {"check": {"tables": titled, "histograms": histograms}})


def _histograms(audit: Audit) -> Iterator[dict[str, Any]]:
    edges, chosen, rejected = audit.score_histograms
    yield {"title": "Scores", "edges": edges, "series": {"chosen": chosen, "rejected": rejected}}
    edges, counts = audit.histogram
    yield {"title": "margin: chosen − rejected score", "edges": edges, "series": {"pairs": counts}}
