"""VLMEvalKit itself: found, imported, kept from changing the process it is imported into, and from changing texts."""

import importlib
import logging
import os
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from uni_dpo.errors import UniDPOError
from uni_dpo.storage.identity import file_digest

DATA_VARIABLE = "LMUData"
"""The environment variable that names the folder of benchmark files."""


def import_kit(checkout: str | Path | None = None) -> str:
    """Import VLMEvalKit, from the installed package or from a folder that holds `vlmeval/`, and say which one it is.

    Importing `vlmeval` switches gradients off, seeds PyTorch, adds a log handler and drops the verification
    of TLS certificates, for the whole process; all of it is put back.

    Raises:
        UniDPOError: it is not there, or another one is already imported.
    """
    if checkout is not None:
        root = Path(checkout).resolve()
        if not (root / "vlmeval" / "__init__.py").is_file():
            raise UniDPOError(f"{root} is not a VLMEvalKit checkout: it has no vlmeval/__init__.py")
        loaded = sys.modules.get("vlmeval")
        if loaded is not None and (where := Path(str(loaded.__file__)).resolve().parent.parent) != root:
            raise UniDPOError(f"VLMEvalKit is already imported from {where}; {root} needs a process of its own")
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
    with _process_as_it_was():
        try:
            kit = importlib.import_module("vlmeval")
            importlib.import_module("vlmeval.dataset")
            importlib.import_module("vlmeval.vlm")
        except ModuleNotFoundError as error:
            if error.name == "vlmeval":
                raise UniDPOError(
                    "VLMEvalKit is not installed: pip install ms-vlmeval, or give --vlmevalkit CHECKOUT"
                ) from error
            raise UniDPOError(
                f"VLMEvalKit needs the Python module {error.name}, which is not installed: pip install {error.name}"
            ) from error
    return f"vlmeval {getattr(kit, '__version__', '?')}"


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    import torch

    gradients = torch.is_grad_enabled()
    handlers = logging.root.handlers[:]
    certificates = ssl._create_default_https_context
    logging.disable(logging.ERROR)  # it reports a missing .env file, which nothing here needs
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logging.disable(logging.NOTSET)
        logging.root.handlers[:] = handlers
        torch.set_grad_enabled(gradients)
        ssl._create_default_https_context = certificates


def data_root() -> Path:
    """Return the folder of benchmark files: `LMUData`, or `~/LMUData`.

    Raises:
        UniDPOError: `LMUData` names a folder that is not there; VLMEvalKit would silently use another one.
    """
    named = os.environ.get(DATA_VARIABLE)
    if named is None:
        return Path.home() / "LMUData"
    if not Path(named).is_dir():
        raise UniDPOError(
            f"LMUData is set to {named}, which is not a folder; create it, put the benchmarks' TSV files there, "
            "or unset LMUData to use ~/LMUData"
        )
    return Path(named)


LONGEST = 32_767
"""Characters that a cell of an Excel file holds; the rest is left out of the file, not of the score."""
_AS_VLMEVALKIT_WRITES = {"index": False, "engine": "xlsxwriter"}
_TEXTS_ARE_TEXTS = {"options": {"strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False}}


@contextmanager
def texts_as_they_are() -> Iterator[None]:
    """Within this block VLMEvalKit's `dump` and `load` keep the texts of .xlsx files."""
    write, read = pd.DataFrame.to_excel, pd.read_excel
    kept: dict[str, pd.DataFrame] = {}

    def to_excel(frame: pd.DataFrame, path: Any, **options: Any) -> None:
        if options != _AS_VLMEVALKIT_WRITES or not isinstance(path, str | Path):
            write(frame, path, **options)
            return
        with pd.ExcelWriter(path, engine="xlsxwriter", engine_kwargs=_TEXTS_ARE_TEXTS) as writer:
            write(_legible(frame), writer, index=False)
        kept[file_digest(path)] = _as_read(frame)

    def read_excel(path: Any, *arguments: Any, **options: Any) -> Any:
        known = isinstance(path, str | Path) and not arguments and not options and Path(path).is_file()
        frame = kept.get(file_digest(path)) if known else None
        return read(path, *arguments, **options) if frame is None else frame.copy(deep=True)

    pd.DataFrame.to_excel, pd.read_excel = to_excel, read_excel  # type: ignore[misc,method-assign,assignment]
    try:
        yield
    finally:
        pd.DataFrame.to_excel, pd.read_excel = write, read  # type: ignore[misc,method-assign]


def _legible(frame: pd.DataFrame) -> pd.DataFrame:
    """What an Excel file can hold of a table."""

    def cell(column: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")[:LONGEST]

    return _mapped(frame, cell)


def _as_read(frame: pd.DataFrame) -> pd.DataFrame:
    """A table as VLMEvalKit expects to read it: lists as text, empty cells but for an empty prediction as missing."""

    def cell(column: str, value: Any) -> Any:
        if value is None or (value == "" and column != "prediction"):
            return float("nan")
        return str(value) if isinstance(value, list | tuple | dict) else value

    return _mapped(frame, cell).reset_index(drop=True)


def _mapped(frame: pd.DataFrame, change: Callable[[str, Any], Any]) -> pd.DataFrame:
    changed = frame.copy()
    for column in changed.columns:
        if not pd.api.types.is_numeric_dtype(changed[column]):
            values = [change(str(column), value) for value in changed[column]]
            changed[column] = pd.Series(values, index=changed.index, dtype=object)
    return changed
