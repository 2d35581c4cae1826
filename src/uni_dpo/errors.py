"""The one exception that stands for a fault of the user's input, and what its messages share."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class UniDPOError(ValueError):
    """Something the user can mend: its message says what, where, and how.

    Entry points print the message without a traceback and exit with status 1. Anything else that
    escapes is a bug and keeps its traceback.
    """


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: `; did you mean 'x'?`, or nothing where none is like it."""
    close = get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@contextmanager
def naming_the_model(model: str) -> Iterator[None]:
    """Turn what loading a checkpoint raises in this block into one line that names it.

    Args:
        model: folder or hub name of the checkpoint.

    Raises:
        UniDPOError: it cannot be loaded, because of the first line of what was raised.
    """
    try:
        yield
    except UniDPOError:
        raise
    except (OSError, ValueError, KeyError) as error:
        missing = "" if Path(model).exists() else "; there is no such folder here"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UniDPOError(f"model {model!r} cannot be loaded{missing}: {reason}") from error
