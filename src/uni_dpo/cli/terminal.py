"""What reaches the terminal: texts as text, whatever is in them and whatever the terminal can show."""

import codecs
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from uni_dpo.errors import CONTROL, escaped, plain

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings instead of the file's.", show_default=False),
]
"""The words after a configuration file."""
_COLOUR = r"\x1b\[[\d;]*m|\x1b\[\d*[A-K]|\x1b\[\?25[hl]"
"""What Rich and tqdm draw with: colours, moves within the lines, the cursor shown and hidden."""
_ESCAPES = "uni-dpo.escapes"


def _not_encodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return escaped(error.object[error.start : error.end]), error.end


class _Shown:
    """A text stream that writes control characters as escapes; everything else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        drawn = stream.isatty() or "FORCE_COLOR" in os.environ
        self._pattern = re.compile(f"(?P<drawn>{_COLOUR})|{CONTROL}" if drawn else CONTROL)

    def write(self, text: str) -> int:
        written: int = self._stream.write(self._pattern.sub(self._replacement, text))
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    @staticmethod
    def _replacement(found: re.Match[str]) -> str:
        return found.group() if found.groupdict().get("drawn") else escaped(found.group())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def texts_shown_as_text() -> Iterator[None]:
    """Within the block, what is printed holds no control characters, and none that the terminal cannot encode."""
    codecs.register_error(_ESCAPES, _not_encodable)
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ESCAPES)
    sys.stdout, sys.stderr = (_Shown(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def print_tables(tables: Iterable[Any]) -> None:
    """Print Rich's tables. Their cells are text: brackets are no markup, control characters are escapes."""
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, **named: Any) -> Text:
            return super().render_str(plain(text), **named)

    console = Plain(markup=False)
    for table in tables:
        console.print(table)


@contextmanager
def live_line(console: Any) -> Iterator[Callable[[str], None]]:
    """Yield what shows a text in the last line of a terminal, in place of the text before; elsewhere nothing shows.

    Args:
        console: Rich's.
    """
    if not console.is_terminal:
        yield lambda text: None
        return
    from rich.text import Text

    with console.status("") as status:
        yield lambda text: status.update(Text(plain(text), overflow="ellipsis", no_wrap=True))
