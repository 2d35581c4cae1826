"""Excel files that VLMEvalKit writes and reads back, with every text as it is.

VLMEvalKit hands predictions to its scoring in .xlsx files. Written its way, a text that begins with `=` becomes a
formula, a long address is left out, control characters and lone surrogates change or break the file; read its way,
`007` becomes 7 and an empty answer becomes `nan`. Here texts are written as texts, and a file that this process wrote
is read back as the table that it was made of.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 32_767
"""Characters that a cell of an Excel file holds; the rest is left out of the file, not of the score."""
_AS_VLMEVALKIT_WRITES = {"index": False, "engine": "xlsxwriter"}
_TEXTS_ARE_TEXTS = {"options": {"strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False}}


@contextmanager
def texts_as_they_are() -> Iterator[None]:
    """Within this block VLMEvalKit's `dump` and `load` keep the texts of .xlsx files."""
    import pandas as pd

    write, read = pd.DataFrame.to_excel, pd.read_excel
    kept: dict[str, pd.DataFrame] = {}

    def to_excel(frame: "pd.DataFrame", path: Any, **options: Any) -> None:
        if options != _AS_VLMEVALKIT_WRITES or not isinstance(path, str | Path):
            write(frame, path, **options)
            return
        with pd.ExcelWriter(path, engine="xlsxwriter", engine_kwargs=_TEXTS_ARE_TEXTS) as writer:
            write(_legible(frame), writer, index=False)
        kept[_digest(path)] = _as_read(frame)

    def read_excel(path: Any, *arguments: Any, **options: Any) -> Any:
        known = isinstance(path, str | Path) and not arguments and not options and Path(path).is_file()
        frame = kept.get(_digest(path)) if known else None
        return read(path, *arguments, **options) if frame is None else frame.copy(deep=True)

    pd.DataFrame.to_excel, pd.read_excel = to_excel, read_excel  # type: ignore[misc,method-assign,assignment]
    try:
        yield
    finally:
        pd.DataFrame.to_excel, pd.read_excel = write, read  # type: ignore[misc,method-assign]


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _legible(frame: "pd.DataFrame") -> "pd.DataFrame":
    """What an Excel file can hold of a table."""

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")[:LONGEST]

    return _mapped(frame, lambda column: cell)


def _as_read(frame: "pd.DataFrame") -> "pd.DataFrame":
    """A table as VLMEvalKit expects to read it: lists as text, empty cells but for an empty prediction as missing."""

    def of(column: str) -> Any:
        def cell(value: Any) -> Any:
            if value is None or (value == "" and column != "prediction"):
                return float("nan")
            return str(value) if isinstance(value, list | tuple | dict) else value

        return cell

    return _mapped(frame, of).reset_index(drop=True)


def _mapped(frame: "pd.DataFrame", of: Any) -> "pd.DataFrame":
    import pandas as pd

    changed = frame.copy()
    for column in changed.columns:
        if not pd.api.types.is_numeric_dtype(changed[column]):
            values = [of(str(column))(value) for value in changed[column]]
            changed[column] = pd.Series(values, index=changed.index, dtype=object)
    return changed
