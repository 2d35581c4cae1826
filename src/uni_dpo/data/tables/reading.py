"""Rows of a table on disk, one at a time, whatever the file's type and size."""

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from uni_dpo.data.columns import PROMPT_COLUMNS
from uni_dpo.data.faults import Fault, PreferenceDataError, encodable, shown, stand_in, where_to_get
from uni_dpo.data.tables.json_stream import Unreadable, json_values
from uni_dpo.storage.rowlog import Row as Row

T = TypeVar("T")

FILE_TYPES = (".json", ".jsonl", ".parquet", ".arrow", ".csv")
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])", re.IGNORECASE)
_ROWS_AT_ONCE = 32
"""Rows of a columnar file that are Python objects at the same time: rows may hold whole images."""


def source_files(path: str | Path) -> list[Path]:
    """Return a file, the files of a folder, or those of one that `save_to_disk` of `datasets` wrote, in order.

    Raises:
        PreferenceDataError: nothing there, or nothing that can be read.
    """
    path = Path(path)
    if is_file(path):
        _check_type(path)
        return [path]
    if not path.is_dir():
        raise PreferenceDataError(f"{path}: no such file or folder; {where_to_get(path) or 'check the name'}")
    if (path / "dataset_dict.json").is_file():
        return [file for files in splits_of(path).values() for file in files]
    if (path / "state.json").is_file():
        return [_inside(path, str(f["filename"])) for f in _listed(path / "state.json", "_data_files")]
    files = sorted(f for f in path.iterdir() if f.is_file() and f.suffix.lower() in FILE_TYPES)
    if not files:
        raise PreferenceDataError(f"{path}: holds no {', '.join(FILE_TYPES)} file")
    return files


def splits_of(path: str | Path) -> dict[str, list[Path]]:
    """Return the files of each split: of a saved `DatasetDict`, or of a folder whose files are named after splits.

    Files that name no split belong to `train`.

    Raises:
        PreferenceDataError: nothing there, or nothing that can be read.
    """
    path = Path(path)
    if (path / "dataset_dict.json").is_file():
        names = map(str, _listed(path / "dataset_dict.json", "splits"))
        return {name: source_files(_inside(path, name)) for name in names}
    splits: dict[str, list[Path]] = {}
    for file in source_files(path):
        named = None if (path / "state.json").is_file() or path.is_file() else _SPLIT.match(file.name)
        splits.setdefault(named.group().lower() if named else "train", []).append(file)
    return splits


def one_split(path: str | Path, split: str | None = None) -> list[Path]:
    """Return the files of the one split that is there, or of the one named, so that no test rows get among the others.

    Raises:
        PreferenceDataError: several are there and none is named, or none of that name.
    """
    splits = splits_of(path)
    names = ", ".join(splits)
    if split is not None and split not in splits:
        raise PreferenceDataError(f"{path}: no split {split!r}; it has {names}")
    if split is None and len(splits) > 1:
        raise PreferenceDataError(
            f"{path}: holds several splits ({names}); name the folder or file of one, or --split for convert"
        )
    return splits[split] if split is not None else next(iter(splits.values()))


def is_file(path: Path) -> bool:
    """Tell whether a regular file is there, also for names that no file system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def numbered_rows(path: str | Path) -> Iterator[tuple[int, int | None, Row | Unreadable]]:
    """Yield every row of one file with its 0-based position and the line it starts in, in flat memory.

    A row that cannot be read comes as `Unreadable`, and the reading continues where the format allows it. Files
    without lines (Parquet, Arrow) have None for the line.

    Raises:
        PreferenceDataError: the file as a whole, or the rest of it, cannot be read.
    """
    path = Path(path)
    _check_type(path)
    readers = {".parquet": _parquet_rows, ".arrow": _arrow_rows, ".csv": _csv_rows}
    try:
        _check_beginning(path)
        for index, (line, value) in enumerate(readers.get(path.suffix.lower(), json_values)(path)):
            if isinstance(value, dict) and (broken := [name for name in value if not encodable(str(name))]):
                value = Unreadable(f"the column name {shown(broken[0])} is not UTF-8")
            elif not isinstance(value, dict | Unreadable):
                value = Unreadable(f"is {shown(value)}, not an object with named fields")
            yield index, line, value
    except OSError as error:
        raise PreferenceDataError(f"{path}: cannot be read ({error.strerror or error})") from None


def iter_rows(path: str | Path) -> Iterator[Row]:
    """Yield every row of a file or folder (see `source_files`), in order, in flat memory.

    Raises:
        PreferenceDataError: at the first row that cannot be read, naming it.
    """
    for file in source_files(path):
        for index, line, row in numbered_rows(file):
            if isinstance(row, Unreadable):
                raise PreferenceDataError.of([unreadable_fault(row, index, file, line)])
            yield row


def shown_rows(path: str | Path, verb: str) -> Iterator[Row]:
    """Yield the rows of `iter_rows` and show how far they are, as `verb` and the file's name."""
    return counted(iter_rows(path), f"{verb} {Path(path).name}")


def counted(rows: Iterable[T], title: str) -> Iterator[T]:
    """Yield rows and show how many there were by now, where they take longer than two seconds."""
    yield from tqdm(rows, desc=title, unit=" rows", mininterval=1.0, delay=2.0)


def unreadable_fault(row: Unreadable, index: int, file: Path, line: int | None = None) -> Fault:
    """Return the fault that an unreadable row is."""
    return Fault("row_unreadable", "row", row.reason, "correct or remove this row", index, file, line)


def _check_beginning(path: Path) -> None:
    """Name what is no text in UTF-8, or often lies under the name of a data file that was not fetched."""
    if is_file(path):
        with path.open("rb") as stream:
            beginning = stream.read(64)
        utf16 = beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if found := ("is UTF-16", "save it as UTF-8") if utf16 else stand_in(beginning):
            raise PreferenceDataError(f"{path}: {found[0]}; {found[1]}")


def _check_type(path: Path) -> None:
    if not path.suffix and not path.exists():
        raise PreferenceDataError(f"{path}: no such file or folder; check the name")
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


def _parquet_rows(path: Path) -> Iterator[tuple[None, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            integers = _integer_columns(file)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE * 8):
                for row in _batch_rows(batch, path):
                    yield None, row | {name: int(row[name]) for name in integers if row[name] is not None}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PreferenceDataError(f"{path}: cannot be read as Parquet ({error})") from None


def _integer_columns(file: Any) -> list[str]:
    """Columns of floats with gaps and nothing but whole numbers: integers, as pandas stores them beside a gap."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = [field.name for field in file.schema_arrow if pa.types.is_float64(field.type)]
    gaps: set[str] = set()
    for batch in file.iter_batches(columns=names) if names else ():
        for name in list(names):
            column = batch.column(name)
            if column.null_count:
                gaps.add(name)
            whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), 2.0**53))
            if not pc.all(whole, min_count=0).as_py():
                names.remove(name)
    return [name for name in names if name in gaps]


def _arrow_rows(path: Path) -> Iterator[tuple[None, Row]]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(index) for index in range(file.num_record_batches))
            else:
                source.seek(0)
                batches = iter(pa.ipc.open_stream(source))
            for batch in batches:
                for row in _batch_rows(batch, path):
                    yield None, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PreferenceDataError(f"{path}: cannot be read as Arrow ({error})") from None


def _batch_rows(batch: Any, path: Path) -> Iterator[Row]:
    """The rows of a batch, once its offsets, lengths and texts are known to be sound: unsound ones end the process."""
    import pyarrow as pa

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            raise PreferenceDataError(f"{path}, column {shown(name)}: holds broken values ({error})") from None
    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
        yield from batch.slice(start, _ROWS_AT_ONCE).to_pylist()


_NUMBER = re.compile(
    r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|-?\.[0-9]+|[+-]?(nan|inf|infinity)", re.IGNORECASE
)
"""A number as CSV writes it; 007, +1 and 1_000 are texts."""


def _csv_rows(path: Path) -> Iterator[tuple[int, Row | Unreadable]]:
    """Rows of a CSV file; in a column whose every filled cell is a number they are numbers, and integers stay such.

    Questions and answers stay texts.
    """
    csv.field_size_limit(1 << 30)
    texts = {*PROMPT_COLUMNS, "chosen", "rejected"}
    for _, row in _csv_records(path):
        if isinstance(row, dict):
            texts |= {name for name in row.keys() - texts if row[name] and not _NUMBER.fullmatch(row[name])}
    for line, row in _csv_records(path):
        if isinstance(row, dict):
            row |= {name: _as_number(cell) for name, cell in row.items() if cell and name not in texts}
        yield line, row


def _csv_records(path: Path) -> Iterator[tuple[int, Row | Unreadable]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(text, strict=True)
        start = 1
        try:
            header = next(reader, [])
            if twice := [name for name, count in Counter(header).items() if count > 1]:
                raise PreferenceDataError(f"{path}: two columns are called {twice[0]!r}; rename one")
            if len(header) == 1 and (mark := next((mark for mark in ";\t|" if mark in header[0]), "")):
                raise PreferenceDataError(f"{path}: {mark!r} stands between its columns; save it with commas there")
            start = reader.line_num + 1
            for cells in reader:
                if len(cells) == len(header):
                    yield start, dict(zip(header, (cell or None for cell in cells), strict=True))
                elif cells:
                    yield start, Unreadable(f"has {len(cells)} cells; the header has {len(header)}")
                start = reader.line_num + 1
        except csv.Error as error:
            fault = f"{path}, line {start}: a quotation mark opens here and does not end before a comma ({error})"
            raise PreferenceDataError(f"{fault}; double each quotation mark inside a cell") from None


def _as_number(cell: str) -> int | float:
    return int(cell) if cell.lstrip("-").isdecimal() else float(cell)
