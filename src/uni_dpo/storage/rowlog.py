"""Rows of an unfinished run, on disk as soon as they are done."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One row of a log or a table, by its columns; of a log JSON values only."""
kept: dict[Path, int] = {}
"""The logs that this process has added to or read, and how many rows each holds: what a stopped run can say."""


def log_lines(path: Path) -> Iterator[tuple[Row | None, int]]:
    """Yield every complete line of a log as a row, None where it is no JSON object, with the bytes up to its end.

    A last line without its end, which a kill leaves behind, is not among them.
    """
    end = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None, end


class RowLog:
    """Rows by their key, in a file that is only appended to; a row given twice counts as last given.

    A process may die at any byte: a half-written last line is dropped when the log is opened again. The first row makes
    the file, of JSON Lines; `key` is the field, a text, that a row is known by.
    """

    def __init__(self, path: str | Path, key: str = "id") -> None:
        self.path = Path(path)
        self.key = key
        self.rows: dict[str, Row] = {}
        if self.path.is_file():
            whole = self._read()
            if whole < self.path.stat().st_size:
                os.truncate(self.path, whole)
        self._note()

    def _read(self) -> int:
        """Load the rows; return the bytes up to the end of the last one that counts."""
        whole = 0
        for row, end in log_lines(self.path):
            whole = end
            if row is not None and isinstance(row.get(self.key), str):
                self.rows[row[self.key]] = row
        return whole

    def append(self, rows: Iterable[Row]) -> None:
        """Write finished rows through to the disk."""
        rows = list(rows)
        self._write(rows)
        self.rows.update((row[self.key], row) for row in rows)
        self._note()

    def _write(self, lines: Iterable[Row]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(text.encode("utf-8", errors="surrogatepass"))
            file.flush()
            os.fsync(file.fileno())

    def _note(self) -> None:
        if self.rows:
            kept[self.path] = len(self.rows)

    def remove(self) -> None:
        """Remove the file: its rows are in the finished output."""
        self.path.unlink(missing_ok=True)
        kept.pop(self.path, None)
