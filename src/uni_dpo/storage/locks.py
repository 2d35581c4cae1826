"""Locks between processes. The system frees a lock when its holder ends, however it ends."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from uni_dpo.errors import UniDPOError

try:
    import fcntl
except ImportError:  # no POSIX system: two runs are not told apart
    fcntl = None  # type: ignore[assignment]

_PAUSE = 0.02


def try_lock(file: int) -> bool:
    """Take the lock of an open file, or return False where another process (or another opening of it) has it.

    Args:
        file: a descriptor. Closing it frees the lock.

    Raises:
        OSError: the file system knows no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def holding(path: str | Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the file `path`, which is made where it is missing, and refuse a second run that wants it.

    A file that is empty at the end is removed, together with the folders that were made for it.

    Args:
        path: the file that stands for what is held.
        what: how a message names it, such as a folder or an output.
        patience: seconds to wait for another run.

    Raises:
        UniDPOError: another run holds it.
    """
    path = Path(path)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _opened(path, what, time.monotonic() + patience)
    try:
        yield
    finally:
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
            for folder in made:
                folder.rmdir()  # fails, and stops, at the first one that holds something
        os.close(file)


def _opened(path: Path, what: str, deadline: float) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(OSError):  # a file system without locks: go on without
                while not try_lock(file):
                    if time.monotonic() < deadline:
                        time.sleep(_PAUSE)
                        continue
                    raise UniDPOError(f"{what}: another run is at work here; wait until it ends, or name another")
            if _is(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the holder before us removed it: what we locked has no name any more


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
