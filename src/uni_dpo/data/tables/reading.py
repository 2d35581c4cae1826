"""Rows of a table on disk, one at a time, whatever the file's type and size."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uni_dpo.data.faults import Fault, PreferenceDataError, shown
from uni_dpo.data.tables.json_stream import Unreadable, json_values

Row = dict[str, Any]
FILE_TYPES = (".json", ".jsonl", ".parquet", ".arrow", ".csv")
_ROWS_AT_ONCE = 32
"""Rows of a columnar file that are Python objects at the same time: rows may hold whole images."""


def source_files(path: str | Path, split: str | None = None) -> list[Path]:
    """The files that hold a dataset's rows, in order.

    Args:
        path: a file, a folder of files of one type, or a folder that `datasets` wrote with `save_to_disk`.
        split: which split of a saved `DatasetDict`; all of them when None.

    Raises:
        PreferenceDataError: nothing there, or nothing that can be read.
    """
    path = Path(path)
    if path.is_file():
        _check_type(path)
        return [path]
    if not path.is_dir():
        raise PreferenceDataError(f"{path}: no such file or folder; check the name")
    if (path / "dataset_dict.json").is_file():
        names = _listed(path / "dataset_dict.json", "splits")
        if split is not None and split not in names:
            raise PreferenceDataError(f"{path}: no split {split!r}; it has {', '.join(map(str, names))}")
        return [f for name in names if split in (None, name) for f in source_files(_inside(path, str(name)))]
    if (path / "state.json").is_file():
        return [_inside(path, str(f["filename"])) for f in _listed(path / "state.json", "_data_files")]
    files = sorted(f for f in path.iterdir() if f.is_file() and f.suffix.lower() in FILE_TYPES)
    if not files:
        raise PreferenceDataError(f"{path}: holds no {', '.join(FILE_TYPES)} file")
    return files


def read_rows(path: str | Path) -> Iterator[tuple[int, Row | Unreadable]]:
    """Every row of one file with its 0-based position; memory use does not grow with the file.

    A row that cannot be read comes as `Unreadable` and the reading goes on where the format allows it.

    Raises:
        PreferenceDataError: the file as a whole, or the rest of it, cannot be read.
    """
    path = Path(path)
    _check_type(path)
    readers = {".parquet": _parquet_rows, ".arrow": _arrow_rows, ".csv": _csv_rows}
    values = readers.get(path.suffix.lower(), json_values)(path)
    for index, value in enumerate(values):
        if isinstance(value, dict | Unreadable):
            yield index, value
        else:
            yield index, Unreadable(f"is {shown(value)}, not an object with named fields")


def iter_rows(path: str | Path, split: str | None = None) -> Iterator[Row]:
    """Every row of a file or folder (see `source_files`), in order, in flat memory.

    Raises:
        PreferenceDataError: at the first row that cannot be read, naming it.
    """
    for file in source_files(path, split):
        for index, row in read_rows(file):
            if isinstance(row, Unreadable):
                raise PreferenceDataError.of([unreadable_fault(row, index, file)])
            yield row


def unreadable_fault(row: Unreadable, index: int, file: Path) -> Fault:
    """The fault that an unreadable row is."""
    return Fault("row_unreadable", "row", row.reason, "mend or remove this row", index, file)


def _check_type(path: Path) -> None:
    if path.suffix.lower() not in FILE_TYPES:
        raise PreferenceDataError(
            f"{path}: files of type {path.suffix or '(none)'!r} are not read; use one of {', '.join(FILE_TYPES)}"
        )


def _listed(path: Path, key: str) -> list[Any]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))[key])
    except (ValueError, KeyError, TypeError) as error:
        raise PreferenceDataError(f"{path}: not what `save_to_disk` writes ({error!r})") from None


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name or name in ("", "..", "."):
        raise PreferenceDataError(f"{folder}: names {name!r}, which is outside the folder")
    return folder / name


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE * 8):
                yield from _batch_rows(batch)
    except (pa.ArrowException, OSError) as error:
        raise PreferenceDataError(f"{path}: cannot be read as Parquet ({error})") from None


def _arrow_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                file = pa.ipc.open_file(source)
                for index in range(file.num_record_batches):
                    yield from _batch_rows(file.get_batch(index))
            else:
                source.seek(0)
                for batch in pa.ipc.open_stream(source):
                    yield from _batch_rows(batch)
    except (pa.ArrowException, OSError) as error:
        raise PreferenceDataError(f"{path}: cannot be read as Arrow ({error})") from None


def _batch_rows(batch: Any) -> Iterator[Row]:
    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
        yield from batch.slice(start, _ROWS_AT_ONCE).to_pylist()


def _csv_rows(path: Path) -> Iterator[Row | Unreadable]:
    """Rows of a CSV file; a column whose every filled cell is a number is numbers, as in `datasets`."""
    csv.field_size_limit(1 << 30)
    numeric: set[str] | None = None
    for row in _csv_records(path):
        if isinstance(row, dict):
            numeric = set(row) if numeric is None else numeric
            numeric -= {name for name in numeric if row[name] is not None and not _is_number(row[name])}
    for row in _csv_records(path):
        if isinstance(row, dict):
            for name in numeric or ():
                row[name] = None if row[name] is None else float(row[name])
        yield row


def _csv_records(path: Path) -> Iterator[Row | Unreadable]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(text)
        try:
            header = next(reader, [])
            for cells in reader:
                if len(cells) == len(header):
                    yield dict(zip(header, (cell or None for cell in cells), strict=True))
                elif cells:
                    yield Unreadable(f"line {reader.line_num} has {len(cells)} cells; the header has {len(header)}")
        except csv.Error as error:
            raise PreferenceDataError(f"{path}, line {reader.line_num}: not CSV ({error})") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
