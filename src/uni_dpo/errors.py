"""The one exception that stands for a fault of the user's input, and what its messages share."""

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches

CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
"""Control characters, and those that turn the direction of writing; not tab, line feed and carriage return."""


class UniDPOError(ValueError):
    """Something the user can fix: its message says what, where, and how.

    Entry points print the message without a traceback and exit with status 1. Anything else that
    escapes is a bug and keeps its traceback.
    """


def plain(text: str) -> str:
    """Show control characters as escapes (`\\u001b`), as JSON has them; line feeds and tabs stay."""
    return re.sub(CONTROL + r"|\r", lambda found: escaped(found.group()), text)


def escaped(text: str) -> str:
    """Write every character that is no printable ASCII, and quotation marks, as JSON's escapes."""
    return json.dumps(text)[1:-1]


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: `; did you mean 'x'?`, or nothing where none is like it."""
    close = get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
