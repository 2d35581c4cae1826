"""JSON of any size, one value at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from uni_dpo.data.faults import Fault, PreferenceDataError, shown

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is in the file but cannot be read."""

    reason: str


def json_values(path: Path) -> Iterator[object]:
    """The elements of a JSON array, or the values of JSON lines; the first character tells which.

    Bytes that are not UTF-8 arrive as lone surrogates, so that the row they stand in can be named.

    Raises:
        PreferenceDataError: the rest of the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise PreferenceDataError(f"{path}: is UTF-16; save it as UTF-8")
    with _open(path) as text:
        first = _first_character(text)
    if first:
        yield from _array_elements(path) if first == "[" else _line_values(path)


def _open(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="surrogateescape")


def _first_character(text: TextIO) -> str:
    while (character := text.read(1)).isspace():
        pass
    return character


def _line_values(path: Path) -> Iterator[object]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            if line.strip() == "{":
                raise PreferenceDataError(
                    f"{path}: holds one object; a list of rows, or one row per line, belongs here"
                )
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Unreadable(f"line {number} is not JSON ({error})")


def _array_elements(path: Path) -> Iterator[object]:
    with _open(path) as text:
        window = _Window(text)
        window.take()
        if window.peek() == "]":
            window.take()
        else:
            count = 0
            while True:
                try:
                    yield window.value()
                    count += 1
                    mark = window.take()
                    if mark not in (",", "]"):
                        raise ValueError(f"{mark!r} where ',' or ']' belongs" if mark else "the file ends here")
                except (ValueError, RecursionError) as error:
                    reason = f"not JSON from here on ({getattr(error, 'msg', error)})"
                    fault = Fault("json_broken", "row", reason, "mend the file at this row", count, path)
                    raise PreferenceDataError.of([fault]) from None
                if mark == "]":
                    break
        if rest := window.peek():
            raise PreferenceDataError(f"{path}: {shown(rest)} follows the end of the list; remove it")


class _Window:
    """The part of a JSON text that is in memory: grows to hold one value, forgets what has been taken."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._buffer = ""
        self._position = 0
        self._at_end = False
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the text."""
        while True:
            while self._buffer[self._position : self._position + 1].isspace():
                self._position += 1
            if self._position < len(self._buffer) or self._at_end:
                return self._buffer[self._position : self._position + 1]
            self._refill()

    def take(self) -> str:
        """Like `peek`, and go past it."""
        character = self.peek()
        self._position += len(character)
        return character

    def value(self) -> object:
        """Decode the next value and go past it.

        Raises:
            ValueError: there is none.
        """
        while True:
            self.peek()
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                if self._at_end or not self._may_be_cut(error):
                    raise
            else:
                if end < len(self._buffer) or self._at_end:
                    self._position = end
                    return value
            self._refill()

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer) - 16

    def _refill(self) -> None:
        kept = self._buffer[self._position :]
        more = self._text.read(max(_CHUNK, len(kept)))
        self._at_end = not more
        self._buffer, self._position = kept + more, 0
