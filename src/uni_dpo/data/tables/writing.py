"""Rows to a table on disk: JSON, JSON lines or Parquet by the file's name; whole, or not at all."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from uni_dpo.data.faults import PreferenceDataError, shown
from uni_dpo.data.tables.reading import Row
from uni_dpo.storage.writing import check_writable, replacing

WRITTEN_TYPES = (".json", ".jsonl", ".parquet")
_PARQUET_ROWS = 2_000
_PARQUET_BYTES = 64 << 20


class RowWriter(Protocol):
    """Takes the rows of one table, in order."""

    def write(self, row: Row) -> None:
        """Add a row."""


@contextmanager
def row_writer(path: str | Path) -> Iterator[RowWriter]:
    """Give a writer of `path`, which gets its name when the block ends without an error.

    Raises:
        PreferenceDataError: a file type that is not written, or a value that the type cannot hold.
    """
    path = Path(path)
    _check_type(path)
    kind = _ParquetWriter if path.suffix.lower() == ".parquet" else _JsonWriter
    with replacing(path) as temporary:
        writer = kind(temporary, path)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


def write_rows(path: str | Path, rows: Iterable[Row]) -> int:
    """Write all rows to `path`; return how many there were."""
    count = 0
    with row_writer(path) as writer:
        for row in rows:
            writer.write(row)
            count += 1
    return count


def keep_inputs(output: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        PreferenceDataError: `output` is one of `inputs`.
    """
    if any(Path(output).resolve() == Path(source).resolve() for source in inputs):
        raise PreferenceDataError(f"{output}: is what is read; name another file to write to")


def check_output(output: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse, before any work is done, an output that could not be written in the end.

    Raises:
        PreferenceDataError: a file type that is not written, or `output` is one of `inputs`.
        UniDPOError: the system does not let us write there.
    """
    _check_type(Path(output))
    keep_inputs(output, inputs)
    check_writable(output)


def _check_type(path: Path) -> None:
    if path.suffix.lower() not in WRITTEN_TYPES:
        found = f"files of type {path.suffix!r} are not written" if path.suffix else "the name has no file type"
        raise PreferenceDataError(f"{path}: {found}; name a file of type {', '.join(WRITTEN_TYPES)}")


class _JsonWriter:
    """One row per line; a .json file holds them in an array."""

    def __init__(self, temporary: Path, name: Path) -> None:
        self._file, self._name, self._rows = temporary.open("wb"), name, 0
        self._array = name.suffix.lower() == ".json"
        self._file.write(b"[" * self._array)

    def write(self, row: Row) -> None:
        try:
            encoded = _encoded(row)
        except (TypeError, ValueError) as error:
            if any(_encoded_images(row)):
                advice = "holds encoded images; write Parquet, or copy the images to a folder (--image-dir)"
                raise PreferenceDataError(f"{self._name}, row {self._rows}: {advice}") from None
            name = next((name for name, value in row.items() if not _writable(value)), "row")
            place = f"{self._name}, row {self._rows}, {name}"
            raise PreferenceDataError(f"{place}: cannot be written as JSON ({error})") from None
        if self._array:
            self._file.write(b",\n" if self._rows else b"\n")
        self._file.write(encoded if self._array else encoded + b"\n")
        self._rows += 1

    def finish(self) -> None:
        self._file.write(b"\n]\n" * self._array)

    def close(self) -> None:
        self._file.close()


class _ParquetWriter:
    """Batches of rows; where a batch needs a wider type, what is written so far is written again with it."""

    def __init__(self, temporary: Path, name: Path) -> None:
        self._path, self._name, self._rows = temporary, name, 0
        self._batch: list[Row] = []
        self._bytes = 0
        self._writer: Any = None

    def write(self, row: Row) -> None:
        self._batch.append(row)
        self._bytes += sum(len(value) for value in _encoded_images(row))
        if len(self._batch) >= _PARQUET_ROWS or self._bytes >= _PARQUET_BYTES:
            self._flush()

    def finish(self) -> None:
        self._flush()
        if self._writer is None:
            raise PreferenceDataError(f"{self._name}: there is no row to write")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if not self._batch:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = self._table()
        if self._writer is not None:
            try:
                table = _widened(table, self._writer.schema)
            except pa.ArrowException as error:
                where = f"rows {self._rows} to {self._rows + len(self._batch) - 1}"
                raise PreferenceDataError(f"{self._name}, {where}: unlike the rows before ({error})") from None
        try:
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._path, table.schema)
            elif table.schema != self._writer.schema:
                self._write_again(table.schema)
            self._writer.write_table(table)
        except pa.ArrowException as error:
            raise PreferenceDataError(f"{self._name}: Parquet cannot hold these rows ({error}); write JSON") from None
        self._rows += len(self._batch)
        self._batch, self._bytes = [], 0

    def _table(self) -> Any:
        import pyarrow as pa

        names = dict.fromkeys(name for row in self._batch for name in row)
        columns = {}
        for name in names:
            values = [row.get(name) for row in self._batch]
            try:
                if {bool, int} <= (kinds := set(map(type, values))) or {bool, float} <= kinds:
                    raise pa.ArrowInvalid("truth values beside numbers")
                columns[name] = pa.array(values)
            except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
                example = shown(next((value for value in values if value is not None), None))
                raise PreferenceDataError(
                    f"{self._name}, column {name!r}: values of several types, such as {example} ({error}); "
                    "give them one type"
                ) from None
        return pa.table(columns)

    def _write_again(self, schema: Any) -> None:
        import pyarrow.parquet as pq

        self._writer.close()
        with tempfile.TemporaryFile(dir=self._path.parent) as narrow:
            with self._path.open("rb") as written:
                shutil.copyfileobj(written, narrow)
            self._writer = pq.ParquetWriter(self._path, schema)
            with pq.ParquetFile(narrow) as read:
                for group in range(read.num_row_groups):
                    self._writer.write_table(_widened(read.read_row_group(group), schema))


def _widened(table: Any, schema: Any) -> Any:
    """The table with the columns of `schema` too, in types that hold the values of both."""
    import pyarrow as pa

    return pa.concat_tables([schema.empty_table(), table], promote_options="permissive")


def _encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _writable(value: object) -> bool:
    try:
        return bool(_encoded(value))
    except (TypeError, ValueError):
        return False


def _encoded_images(value: object) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _encoded_images(item)
