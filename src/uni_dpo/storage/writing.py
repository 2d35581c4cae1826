"""Writing files so that a final name never holds half a file, and locks between processes.

The system frees a lock when its holder ends, however it ends.
"""

import math
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError

try:
    import fcntl
except ImportError:  # no POSIX system: two runs are not told apart
    fcntl = None  # type: ignore[assignment]

_PAUSE = 0.02


def try_lock(file: int) -> bool:
    """Take the lock of an open file, or return False where another process (or another opening of it) has it.

    Closing the descriptor frees the lock.

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
        path: stands for what is held.
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
                    if time.monotonic() >= deadline:
                        raise UniDPOError(f"{what}: another run is at work here; wait until it ends, or name another")
                    time.sleep(_PAUSE)
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the holder before us removed it: what we locked has no name any more


_TEMPORARY = re.compile(rb"\..*\.[0-9a-f]{8}\.tmp", re.DOTALL)
_NAME_BYTES = 200
"""Of a file's own name in its temporary one: names end at 255 bytes."""
_swept: set[Path] = set()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield an empty file beside `path`; rename it to `path` when the block ends without an error.

    The block fills the file and must not put another in its place. When the block raises (Ctrl-C included) the
    file is removed, and whatever stood under `path` is as it was. A file that is replaced keeps its mode; behind a
    link, the file that the link names is replaced. What killed runs left in the folder is removed.

    Raises:
        UniDPOError: `path` is a folder, a device or the like, or the system does not let us write there.
    """
    final = regular(path)
    with _naming(path):
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.parent.absolute() not in _swept:  # once per process: image stores write thousands of files
            _swept.add(final.parent.absolute())
            sweep(final.parent)
        before = final.stat() if final.exists() else None
        temporary, file = _create(final, 0o666 if before is None else 0o600)
    try:
        yield temporary
        with _naming(path):
            os.fsync(file)
            if before is not None:
                with suppress(PermissionError):  # somebody else's file that we may replace but not give away
                    os.chown(temporary, before.st_uid, before.st_gid)
                temporary.chmod(stat.S_IMODE(before.st_mode))
            temporary.replace(final)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(file)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder to fill, which gets the name `path` when the block ends without an error.

    Raises:
        UniDPOError: there is something under that name, or the system does not let us write there.
    """
    path = Path(path)
    check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as around:
        folder = Path(around) / path.name
        folder.mkdir()
        yield folder
        folder.rename(path)


def check_new(path: str | Path) -> None:
    """Refuse a folder that `new_folder` could not make, as it does."""
    if Path(path).exists():
        raise UniDPOError(f"{path}: is there already; name a new folder")
    check_writable(path)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 under `path`, all of it or nothing."""
    with _naming(path), replacing(path) as temporary:  # on a full disk it is the writing that fails
        temporary.write_text(text, encoding="utf-8")


def finite(value: Any) -> Any:
    """Return JSON-like values with None in place of every number that JSON has not: NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): finite(part) for name, part in value.items()}
    return [finite(part) for part in value] if isinstance(value, list | tuple) else value


def check_writable(path: str | Path) -> None:
    """Refuse a file that `replacing` could not write, as it does: a nameless file is made beside it and forgotten."""
    final = regular(path)
    folder = next(folder for folder in final.parents if folder.exists())
    with _naming(path), tempfile.TemporaryFile(dir=folder):
        pass


def regular(path: str | Path) -> Path:
    """Return the regular file that `path` is or would become, links followed.

    Raises:
        UniDPOError: something else is there, which no file may replace and which may have no end when it is read.
    """
    path = Path(path)
    try:
        final = path.resolve() if path.is_symlink() else path
        mode = final.stat().st_mode
    except FileNotFoundError:
        return final
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a null byte
        raise UniDPOError(f"{path}: {_reason(error)}; name another file") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise UniDPOError(f"{path}: is {kinds.get(stat.S_IFMT(mode), 'a device')}; a file belongs there")
    return final


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UniDPOError(f"{path}: cannot be written ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _create(final: Path, mode: int) -> tuple[Path, int]:
    """Make a temporary file beside `final` and lock it, which shows other processes that its writer is alive."""
    name = os.fsdecode(os.fsencode(final.name)[:_NAME_BYTES])
    while True:
        temporary = final.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        with suppress(OSError):  # a file system without locks
            try_lock(file)
        if os.fstat(file).st_nlink:
            return temporary, file
        os.close(file)  # another process swept it away before it was locked


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed writers left in `folder`; those of living ones stay."""
    names: list[str] = []
    with suppress(OSError), os.scandir(folder) as entries:  # a folder may be writable and not readable
        names = [entry.name for entry in entries if _TEMPORARY.fullmatch(os.fsencode(entry.name))]
    for name in names:
        with suppress(OSError):  # not ours, gone already, or on a file system without locks
            file = os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(file).st_mode) and try_lock(file):
                    (folder / name).unlink()
            finally:
                os.close(file)
