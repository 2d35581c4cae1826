"""The one exception that stands for a fault of the user's input, and a hint that its messages share."""

from collections.abc import Iterable
from difflib import get_close_matches


class UniDPOError(ValueError):
    """Something the user can mend: its message says what, where, and how.

    Entry points print the message without a traceback and exit with status 1. Anything else that
    escapes is a bug and keeps its traceback.
    """


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: `; did you mean 'x'?`, or nothing where none is like it."""
    close = get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
