"""Pairs from answers that take a stance: `id, prompt, support, oppose`."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from uni_dpo.data.formats.base import Format, Losses, Pairing, id_of, text_of
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.tables.reading import Row, iter_rows, one_split
from uni_dpo.data.tables.writing import keep_inputs, write_rows
from uni_dpo.errors import UniDPOError


def stance_pairs(rows: Sequence[Row], support_ratio: float) -> list[Row]:
    """The exercise's table: the first `support_ratio` of the rows choose `support`, the others `oppose`.

    Args:
        rows: objects with `prompt`, `support` and `oppose`.
        support_ratio: share of the rows, 0 to 1; the number of rows is rounded down.

    Returns:
        Rows with `prompt, position, chosen, rejected`, in the order of `rows`.
    """
    if not 0 <= support_ratio <= 1:
        raise UniDPOError(f"support_ratio: {support_ratio}; use a share between 0 and 1")
    supporting = int(len(rows) * support_ratio + 1e-9)
    table = []
    for index, row in enumerate(rows):
        position, other = ("support", "oppose") if index < supporting else ("oppose", "support")
        table.append(
            {
                "prompt": text_of(row, "prompt"),
                "position": position,
                "chosen": text_of(row, position),
                "rejected": text_of(row, other),
            }
        )
    return table


def make_stance_pairs(
    source: str | Path, output: str | Path, *, support_ratio: float, count: int | None = None
) -> dict[str, int]:
    """Write the exercise's table of the first `count` rows of `source` (all when None).

    Returns:
        How many rows choose `support`, and how many `oppose`.

    Raises:
        PreferenceDataError: a row without the three texts.
    """
    keep_inputs(output, one_split(source))
    table = stance_pairs(list(islice(iter_rows(source), count)), support_ratio)
    write_rows(output, table)
    return {stance: sum(row["position"] == stance for row in table) for stance in ("support", "oppose")}


def read(row: Row, losses: Losses, pairing: Pairing) -> Iterator[PreferencePair]:
    """A row of the exercise's table as a pair."""
    prompt, chosen, rejected = (text_of(row, name) for name in ("prompt", "chosen", "rejected"))
    yield PreferencePair(prompt, chosen, rejected, id=id_of(row, losses, "id"))


FORMATS = (Format("stance", "`prompt, position, chosen, rejected` (from `id, prompt, support, oppose`)", read),)
