"""`uni-dpo data check --fix`: the good rows in one file, repaired where that is safe, and the others beside it."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from uni_dpo.data.checks.rows import IMAGE_TOKEN, CheckedRow, RowChecker
from uni_dpo.data.image_state import BrokenImageError
from uni_dpo.data.pair import listed_images
from uni_dpo.data.tables.reading import Row, is_file
from uni_dpo.data.tables.writing import RowWriter, row_writer
from uni_dpo.storage.writing import finite, replacing

_NUMBER = re.compile(r"\s*[-+]?[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?\s*", re.IGNORECASE)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


def rejects_path(fix: Path) -> Path:
    """Tell where the rows go that `--fix` leaves out."""
    return fix.with_name(f"{fix.stem}.rejected.jsonl")


@dataclass(frozen=True)
class RowSorter:
    """Writes each row where it belongs, and counts what it repaired.

    Attributes:
        good: takes the rows without fault.
        rest: takes the others, as JSON lines with the reasons.
        checker: judges a row anew once it is repaired.
        lead: changes a good row for the file that it goes to.
        repairs: what was put right → how often.
    """

    good: RowWriter
    rest: TextIO
    checker: RowChecker
    lead: Callable[[Row], Row]
    repairs: Counter[str] = field(default_factory=Counter)

    def add(self, row: CheckedRow) -> None:
        """Write the row, or the row as it should be, or the reasons why it is left out."""
        if row.row is not None:
            repaired, done = self._repaired(row.row)
            if not (self.checker.again(row, repaired) if done else row).faults:
                self.good.write(self.lead(repaired))
                self.repairs.update(done)
                return
        reasons = [f"{fault.field}: {fault.found}; {fault.advice}" for fault in row.faults]
        record = {"file": str(row.file), "row": row.index, "line": row.line, "reasons": reasons, "data": row.row}
        self.rest.write(json.dumps(finite(record), default=repr) + "\n")

    def _repaired(self, row: Row) -> tuple[Row, list[str]]:
        """A copy of the row with everything put right that has one right value, and what was done."""
        columns, done, repaired = self.checker.entry.columns, [], dict(row)
        for column in (columns.score_chosen, columns.score_rejected):
            value = row.get(column)
            if isinstance(value, str) and _NUMBER.fullmatch(value):
                number = float(value)
                repaired[column] = int(number) if number.is_integer() and abs(number) < 2**53 else number
                done.append(f"{column}: text to number")
        for name in filter(None, (columns.images, columns.rejected_images)):
            images = listed_images(row, name)
            if row.get(name) is not None:
                repaired[name] = [self._found(item) if isinstance(item, str) else item for item in images]
                done += [f"{name}: text to list"] if images is not row[name] else []
                done += [f"{name}: suffix of the file"] if images != repaired[name] else []
        if with_images := self._with_placeholders(repaired):
            repaired |= with_images
            done.append(f"{IMAGE_TOKEN} put in front of the question")
        videos = row.get(columns.videos) if columns.videos else None
        if isinstance(videos, str):
            repaired[str(columns.videos)] = [videos]
            done.append(f"{columns.videos}: text to list")
        return repaired, done

    def _with_placeholders(self, row: Row) -> Row | None:
        """The question with an `<image>` per image, where images are there and no text stands for any; else None."""
        columns = self.checker.entry.columns
        images, history = row.get(columns.images or ""), row.get(columns.history or "")
        if not isinstance(images, list) or not images or history or IMAGE_TOKEN in json.dumps(row, default=repr):
            return None
        front = IMAGE_TOKEN * len(images)
        if isinstance(asked := row.get(columns.prompt or ""), str):
            return {str(columns.prompt): front + asked}
        content, turns = str(self.checker.entry.tags.content_tag), row.get(columns.messages or "")
        if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], dict):
            return None
        said = turns[0].get(content)
        return {str(columns.messages): [turns[0] | {content: front + said}]} if isinstance(said, str) else None

    def _found(self, path: str) -> str:
        """The path, or the one that differs in its suffix alone where only that one is there."""
        stem, dot, suffix = path.rpartition(".")
        if self.checker.images is None or f".{suffix.lower()}" not in _SUFFIXES:
            return path
        try:
            places = self.checker.images.paths.places(path)
        except BrokenImageError:
            return path
        if any(map(is_file, places)):
            return path
        others = {end for known in _SUFFIXES for end in (known, known.upper()) if end != f"{dot}{suffix}"}
        there = [end for end in sorted(others) if any(is_file(place.with_suffix(end)) for place in places)]
        return stem + there[0] if len(there) == 1 else path


@contextmanager
def sorting(fix: Path, checker: RowChecker, lead: Callable[[Row], Row]) -> Iterator[RowSorter]:
    """Give a sorter whose files get their names when the block ends without an error."""
    with (
        row_writer(fix) as good,
        replacing(rejects_path(fix)) as temporary,
        temporary.open("w", encoding="utf-8") as rest,
    ):
        yield RowSorter(good, rest, checker, lead)
