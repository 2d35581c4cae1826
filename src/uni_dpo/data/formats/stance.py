"""Pairs from answers that take a stance: `id, prompt, support, oppose`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from uni_dpo.data.formats.base import Format, SourceRow
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.tables.reading import Row, iter_rows, one_split
from uni_dpo.data.tables.writing import keep_inputs, write_rows
from uni_dpo.errors import UniDPOError


def stance_pairs(rows: Sequence[Row], support_ratio: float, system: str | None = None) -> list[Row]:
    """Return the exercise's table: the first `support_ratio` of the rows choose `support`, the others `oppose`.

    Args:
        rows: objects with `prompt`, `support` and `oppose`; `prompt, position, chosen, rejected` become of them, in
            their order, and `system` where there is one.
        support_ratio: share of the rows, 0 to 1; the number of rows is rounded down.
    """
    if not 0 <= support_ratio <= 1:
        raise UniDPOError(f"support_ratio: {support_ratio}; use a share between 0 and 1")
    supporting = int(len(rows) * support_ratio + 1e-9)
    rest = {"system": system} if system else {}
    table = []
    for index, row in enumerate(map(SourceRow, rows)):
        position, other = ("support", "oppose") if index < supporting else ("oppose", "support")
        answers = {"chosen": row.text(position), "rejected": row.text(other)}
        table.append({"prompt": row.text("prompt"), "position": position} | answers | rest)
    return table


def make_stance_pairs(
    source: str | Path,
    output: str | Path,
    *,
    support_ratio: float,
    count: int | None = None,
    system: str | None = None,
) -> dict[str, int]:
    """Write the exercise's table of the first `count` rows of `source` (all when None), and count its stances.

    A row without the three texts is refused.
    """
    keep_inputs(output, one_split(source))
    table = stance_pairs(list(islice(iter_rows(source), count)), support_ratio, system)
    write_rows(output, table)
    return count_stances(table)


def count_stances(rows: Iterable[Row]) -> dict[str, int]:
    """Count the rows of the exercise's table that choose `support` and those that choose `oppose`."""
    chosen = Counter(row.get("position") for row in rows)
    return {stance: chosen[stance] for stance in ("support", "oppose")}


def read(row: SourceRow) -> Iterator[PreferencePair]:
    """Yield a row of the exercise's table as a pair."""
    prompt, chosen, rejected = (row.text(name) for name in ("prompt", "chosen", "rejected"))
    system = row.text("system") if row.get("system") else ""
    yield PreferencePair(prompt, chosen, rejected, id=row.id("id"), system=system)


FORMATS = (Format("stance", "`prompt, position, chosen, rejected` (from `id, prompt, support, oppose`)", read),)
