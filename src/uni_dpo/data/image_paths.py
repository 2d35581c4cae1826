"""Moving the paths of a dataset to where its images and videos are now."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from uni_dpo.data.columns import IMAGE_COLUMNS, VIDEO_COLUMNS
from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.tables.reading import Row, is_file, shown_rows
from uni_dpo.data.tables.writing import row_writer

MOVED_COLUMNS = (*IMAGE_COLUMNS, *VIDEO_COLUMNS, "rejected_images")
CHANGED, RIGHT, WITHOUT_ANCHOR = "changed", "already right", "left alone, no anchor"
OUTSIDE, MISSING = "left alone, leave the image folder", "point to no file"
"""What becomes of a path. `MISSING`, after the change, is counted beside another one, which is never `OUTSIDE`."""


@dataclass
class Rebased:
    """What rebasing did, or with `check` would do, to the paths of a file.

    Attributes:
        rows: rows read.
        paths: what became of a path → of how many.
        examples: the first path of each of the last three.
        output: what was written; None where nothing was.
        backup: the copy of what was overwritten; None where nothing was.
    """

    rows: int = 0
    paths: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys((CHANGED, RIGHT, WITHOUT_ANCHOR, OUTSIDE, MISSING), 0)
    )
    examples: dict[str, str] = field(default_factory=dict)
    output: Path | None = None
    backup: Path | None = None

    def lines(self) -> list[str]:
        """Return the report, one line per fact."""
        lines = [f"rows read: {self.rows:,}"]
        for name, count in self.paths.items():
            example = f", such as {self.examples[name]}" if name in self.examples else ""
            lines.append(f"paths {name}: {count:,}{example}")
        lines += [f"copy of the original: {self.backup}"] if self.backup else []
        lines.append(f"written: {self.output}" if self.output else "nothing written")
        return lines

    def note(self, what: str, path: str) -> None:
        """Count one more path."""
        self.paths[what] += 1
        if what not in (CHANGED, RIGHT):
            self.examples.setdefault(what, path)


def rebase_images(
    input_file: str | Path,
    roots: Sequence[str | Path],
    *,
    anchor: str = "MM-RLHF",
    output_file: str | Path | None = None,
    check: bool = False,
) -> Rebased:
    """Give every image path the root that its file is under now.

    What follows the last `anchor` component of a path is looked for below each root in turn; where no root has
    the file, the path gets the first root and is counted as missing.

    Args:
        input_file: a JSON, JSONL or Parquet file of any size.
        roots: folders that stand for the anchor from now on.
        anchor: the path component that the old and the new paths share.
        output_file: where to write; None overwrites the input if a path changes, and keeps a copy beside it.
        check: only count.

    Raises:
        PreferenceDataError: the file cannot be read, or a root is not a folder.
    """
    if not roots:
        raise PreferenceDataError("rebasing images needs at least one folder that holds them")
    for root in roots:
        if not Path(root).is_dir():
            raise PreferenceDataError(f"{root}: no such folder; name the folder that holds what follows {anchor!r}")
    source, target = Path(input_file), Path(output_file or input_file)
    resolved = [Path(root).absolute() for root in roots]
    if check or output_file is None:
        counted = _Rebaser(resolved, anchor)
        for row in shown_rows(source, "Reading"):
            counted.rebase_row(row)
        if check or not counted.result.paths[CHANGED]:
            return counted.result
    rebaser = _Rebaser(resolved, anchor)
    with row_writer(target) as writer:
        for row in shown_rows(source, "Reading"):
            writer.write(rebaser.rebase_row(row))
        if target.exists():
            rebaser.result.backup = _keep_copy(target)
    rebaser.result.output = target
    return rebaser.result


def leading(source: str | Path, output: str | Path) -> Callable[[Row], Row]:
    """Return a function from a row of `source` to the same row for `output`.

    Paths of files that start beside `source` lead to them from `output`; others stay.
    """
    old = Path(source if Path(source).is_dir() else Path(source).parent).resolve()
    new = Path(output).parent.resolve()

    def led(path: str) -> str:
        beside = not Path(path).is_absolute() and is_file(old / path)
        return os.path.relpath(old / path, new) if beside else path

    return (lambda row: row) if old == new else partial(_with_paths, change=led)


def _with_paths(row: Row, change: Callable[[str], str]) -> Row:
    """The row with its paths of images and videos changed."""

    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(item) for item in value]
        if isinstance(value, dict) and isinstance(value.get("path"), str) and value.get("bytes") is None:
            return value | {"path": change(value["path"])}
        return change(value) if isinstance(value, str) else value

    return row | {name: changed(row[name]) for name in MOVED_COLUMNS if name in row}


class _Rebaser:
    def __init__(self, roots: Sequence[Path], anchor: str) -> None:
        self._roots = roots
        self._anchor = anchor
        self._is_file = lru_cache(200_000)(is_file)
        self.result = Rebased()

    def rebase_row(self, row: Row) -> Row:
        """Return a copy of `row` with its paths moved."""
        self.result.rows += 1
        return _with_paths(row, self._rebased)

    def _rebased(self, path: str) -> str:
        parts, moved, what = re.split(r"[/\\]", path), path, WITHOUT_ANCHOR
        if self._anchor in parts:
            after = parts[len(parts) - parts[::-1].index(self._anchor) :]
            relative = os.path.normpath(Path(*after)) if after else "."
            if relative.startswith("..") or Path(relative).is_absolute():
                self.result.note(OUTSIDE, path)
                return path
            candidates = [root / relative for root in self._roots]
            moved = str(next(filter(self._is_file, candidates), candidates[0]))
            what = RIGHT if moved == path else CHANGED
        self.result.note(what, path)
        if not self._is_file(Path(moved)):
            self.result.note(MISSING, moved)
        return moved


def _keep_copy(path: Path) -> Path:
    """A second name for the file as it is, which a later rename over `path` leaves alone."""
    number = 0
    while (copy := path.with_name(f"{path.name}.bak{number or ''}")).exists():
        number += 1
    try:
        os.link(path, copy)
    except OSError:
        shutil.copy2(path, copy)
    return copy
