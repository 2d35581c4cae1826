"""JSON of any size, one value at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from uni_dpo.data.faults import Fault, PreferenceDataError, shown

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is in the file but cannot be read."""

    reason: str


class _Decoder(json.JSONDecoder):
    """Decodes values, and notes the fields that an object gives twice, of which JSON keeps the last."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self._repeated: list[str] = []

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            self._repeated += [name for name in fields if names.count(name) > 1]
        return fields

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """Return the value that begins at `idx`, and its end; `Unreadable` where a field is twice in it."""
        self._repeated.clear()
        value, end = super().raw_decode(s, idx)
        return (Unreadable(f"gives {shown(self._repeated[0])} twice") if self._repeated else value), end


def json_values(path: Path) -> Iterator[tuple[int, object]]:
    """Yield the elements of a JSON array, or the values of JSON lines, each with the line it starts in, from 1.

    The first character tells which of the two it is. A number that is no number of JSON (NaN) or is beyond every
    float (1e400) arrives as NaN or infinity: what reads it decides. An object that gives a field twice is `Unreadable`.

    Bytes that are not UTF-8 arrive as lone surrogates, so that the row they stand in can be named.

    Raises:
        PreferenceDataError: the rest of the file cannot be read.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as text:
        window = _Window(text)
        first = window.peek()
        if first == "[":
            yield from _array_elements(path, window)
        elif first:
            text.seek(0)
            yield from _line_values(path, text)


def _line_values(path: Path, lines: TextIO) -> Iterator[tuple[int, object]]:
    decoder = _Decoder()
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        if line.strip() == "{":
            raise PreferenceDataError(f"{path}: holds one object; a list of rows, or one row per line, belongs here")
        try:
            yield number, decoder.decode(line)
        except (ValueError, RecursionError) as error:
            yield number, Unreadable(f"is not JSON ({getattr(error, 'msg', error)})")


def _array_elements(path: Path, window: "_Window") -> Iterator[tuple[int, object]]:
    window.take()
    mark = window.take() if window.peek() == "]" else ""
    count = 0
    while mark != "]":
        try:
            window.peek()
            line = window.line
            yield line, window.value()
            count += 1
            mark = window.take()
            if mark not in (",", "]"):
                raise ValueError(f"{mark!r} where ',' or ']' belongs" if mark else "the file ends here")
        except (ValueError, RecursionError) as error:
            reason = f"not JSON from here on ({getattr(error, 'msg', error)})"
            fault = Fault("json_broken", "row", reason, "correct the file there", count, path, window.line)
            raise PreferenceDataError.of([fault]) from None
    if rest := window.peek():
        raise PreferenceDataError(f"{path}: {shown(rest)} follows the end of the list; remove it")


class _Window:
    """The part of a JSON text that is in memory: grows to hold one value, forgets what has been taken."""

    def __init__(self, text: TextIO) -> None:
        self.line = 1
        self._text = text
        self._buffer = ""
        self._position = 0
        self._at_end = False
        self._decoder = _Decoder()

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end of the text."""
        while True:
            while self._buffer[self._position : self._position + 1].isspace():
                self.line += self._buffer[self._position] == "\n"
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
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer) - 16
                if self._at_end or not cut:
                    raise
            else:
                if end < len(self._buffer) or self._at_end:
                    self.line += self._buffer.count("\n", self._position, end)
                    self._position = end
                    return value
            self._refill()

    def _refill(self) -> None:
        kept = self._buffer[self._position :]
        more = self._text.read(max(_CHUNK, len(kept)))
        self._at_end = not more
        self._buffer, self._position = kept + more, 0
