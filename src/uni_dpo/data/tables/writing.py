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
    kinds: dict[str, type[_JsonLinesWriter] | type[_ParquetWriter]]
    kinds = {".json": _JsonWriter, ".jsonl": _JsonLinesWriter, ".parquet": _ParquetWriter}
    kind = kinds[path.suffix.lower()]
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


class _JsonLinesWriter:
    """One row per line."""

    _between = b"\n"

    def __init__(self, temporary: Path, name: Path) -> None:
        self._file = temporary.open("wb")
        self._name = name
        self._rows = 0

    def write(self, row: Row) -> None:
        try:
            encoded = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            if any(_encoded_images(row)):
                advice = "holds encoded images; write Parquet, or copy the images to a folder (--image-dir)"
                raise PreferenceDataError(f"{self._name}, row {self._rows}: {advice}") from None
            name = next((name for name, value in row.items() if not _writable(value)), "row")
            place = f"{self._name}, row {self._rows}, {name}"
            raise PreferenceDataError(f"{place}: cannot be written as JSON ({error})") from None
        if self._rows:
            self._file.write(self._between)
        self._file.write(encoded)
        self._rows += 1

    def finish(self) -> None:
        if self._rows:
            self._file.write(b"\n")

    def close(self) -> None:
        self._file.close()


class _JsonWriter(_JsonLinesWriter):
    """An array with one row per line."""

    _between = b",\n"

    def __init__(self, temporary: Path, name: Path) -> None:
        super().__init__(temporary, name)
        self._file.write(b"[\n")

    def finish(self) -> None:
        self._file.write(b"\n]\n" if self._rows else b"]\n")


class _ParquetWriter:
    """Batches of rows; where a batch needs a wider type, what is written so far is written again with it."""

    def __init__(self, temporary: Path, name: Path) -> None:
        self._path = temporary
        self._name = name
        self._batch: list[Row] = []
        self._bytes = 0
        self._rows = 0
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

        table = self._table()
        if self._writer is None:
            self._writer = self._opened(table.schema)
        elif table.schema != self._writer.schema:
            try:
                schema = pa.unify_schemas([self._writer.schema, table.schema], promote_options="permissive")
            except pa.ArrowException as error:
                where = f"rows {self._rows} to {self._rows + len(self._batch) - 1}"
                raise PreferenceDataError(f"{self._name}, {where}: unlike the rows before ({error})") from None
            if schema != self._writer.schema:
                self._widen(schema)
        self._write_table(table)
        self._rows += len(self._batch)
        self._batch, self._bytes = [], 0

    def _opened(self, schema: Any) -> Any:
        import pyarrow.parquet as pq

        with self._said_plainly():
            return pq.ParquetWriter(self._path, schema)

    def _write_table(self, table: Any) -> None:
        with self._said_plainly():
            self._writer.write_table(_as_schema(table, self._writer.schema))

    @contextmanager
    def _said_plainly(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except pa.ArrowException as error:
            raise PreferenceDataError(f"{self._name}: Parquet cannot hold these rows ({error}); write JSON") from None

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
                    f"{self._name}, column {name!r}: values of several types, such as {example} ({error})"
                ) from None
        return pa.table(columns)

    def _widen(self, schema: Any) -> None:
        import pyarrow.parquet as pq

        self._writer.close()
        with tempfile.TemporaryFile(dir=self._path.parent) as narrow:
            with self._path.open("rb") as written:
                shutil.copyfileobj(written, narrow)
            self._writer = self._opened(schema)
            with pq.ParquetFile(narrow) as read:
                for group in range(read.num_row_groups):
                    self._write_table(read.read_row_group(group))


def _as_schema(table: Any, schema: Any) -> Any:
    import pyarrow as pa

    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field.name, pa.nulls(table.num_rows, field.type))
    table = table.select(schema.names)
    return table if table.schema == schema else table.cast(schema)


def _writable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):
        return False
    return True


def _encoded_images(value: object) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _encoded_images(item)
    elif isinstance(value, list):
        for item in value:
            yield from _encoded_images(item)
