"""Where the words of libraries go: what a person needs to the terminal, all of it to a file in the output folder."""

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

OURS = ("llamafactory.uni_dpo", "transformers.uni_dpo")
"""Loggers of this package, below those of the libraries that show them."""
LIBRARIES = ("llamafactory", "transformers", "accelerate", "datasets", "DeepSpeed", "peft", "trl")
VERBOSE = "UNI_DPO_VERBOSE"
"""Environment variable by which `--verbose` reaches the processes of a run."""


_WHOLE = "%(asctime)s %(levelname)s %(name)s:%(lineno)d %(message)s"


def _for_people(record: logging.LogRecord) -> bool:
    """Let through this package's words and every warning; of processes but the first, errors alone."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return record.levelno >= logging.ERROR
    return record.levelno >= logging.WARNING or record.name.startswith(OURS)


class _Handler(logging.StreamHandler[Any]):
    """Writes as `words` says, also after transformers has given every handler its own format."""

    def __init__(self, stream: Any, words: Callable[[logging.LogRecord], str]) -> None:
        super().__init__(stream)
        self._words = words

    def format(self, record: logging.LogRecord) -> str:
        return self._words(record)


def _plain(record: logging.LogRecord) -> str:
    kind = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
    return kind + record.getMessage()


def log_file(output: str | Path) -> Path:
    """Return the file that holds all that a process of a training said."""
    rank = int(os.environ.get("RANK", "0"))
    return Path(output) / "uni_dpo" / (f"train-rank-{rank}.log" if rank else "train.log")


class _Log(io.TextIOBase):
    """A text file that is there from its first word on: a run that is refused leaves no folder behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.TextIOWrapper | None = None

    def write(self, text: str) -> int:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        return self._file.write(text)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _silent(record: logging.LogRecord) -> bool:
    return False


@contextmanager
def readable(output: str | Path) -> Iterator[Path]:
    """Within the block, the libraries' loggers and what is printed go to `log_file`, and warnings to the terminal too.

    Where `--verbose` was given, everything stays as the libraries have it.
    """
    file = log_file(output)
    if os.environ.get(VERBOSE):
        yield file
        return
    with closing(_Log(file)) as log:
        terminal, whole = _Handler(sys.stderr, _plain), _Handler(log, logging.Formatter(_WHOLE).format)
        terminal.addFilter(_for_people)
        loggers = [logging.getLogger(name) for name in LIBRARIES]
        found = {handler for logger in loggers for handler in logger.handlers}
        replaced = [handler for handler in found if type(handler) is logging.StreamHandler]  # not the web page's own
        for handler in replaced:  # silenced where they are: the libraries put them back in when they are removed
            handler.addFilter(_silent)
        for logger in loggers:
            logger.handlers += [terminal, whole]
        try:
            with redirect_stdout(log):
                yield file
        finally:
            for handler in replaced:
                handler.removeFilter(_silent)
            for logger in loggers:
                logger.handlers = [handler for handler in logger.handlers if handler not in (terminal, whole)]
