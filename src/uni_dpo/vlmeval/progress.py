"""Progress with counts and time left: live on a terminal, a line every half minute in a log."""

import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    Bar = tqdm[Any]


def progress_bar(title: str, total: int, *, done: int = 0, shown: bool = True) -> "Bar":
    """A bar over rows of which `done` were finished before."""
    every = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=done, desc=title, unit="row", mininterval=every, disable=not shown)
