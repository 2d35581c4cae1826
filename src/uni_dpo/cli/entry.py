"""What every entry point shares: a fault is one message, Ctrl-C ends soon, texts reach the terminal as text."""

import codecs
import errno
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from uni_dpo.errors import CONTROL, UniDPOError, escaped, plain
from uni_dpo.storage.rowlog import kept

PATIENCE = 1.0
"""Seconds that a stopped command has for its own ending: threads may wait for a server, or C code for a device."""
TRAINING = ("train", "trl-dpo", "ppo", "grpo", "align", "demo")
"""Commands whose libraries end processes of their own, in their own time."""
STOPPED = 130
SHOWN = 3
"""Files that the last line names, at most."""
_OURS = (errno.EBADF, errno.EFAULT, errno.ECHILD)
"""Errors of the system that only a mistake in the program makes; all others are said in one line."""

_said = threading.Event()
_ending = threading.Lock()


def run(command: Callable[[], object]) -> None:
    """Run an entry point and end the process where it fails.

    A fault of the input or an error of the system is one message and exit status 1, Ctrl-C is a message and exit
    status 130. What else escapes is a bug and keeps its traceback.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as those of a daemon may be; opened first, it takes the free number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    stopping = _watch()
    with texts_shown_as_text():
        try:
            command()
        except KeyboardInterrupt:
            _stop()
        except SystemExit as end:
            if end.code == STOPPED:
                _stop()
            raise
        except UniDPOError as error:
            sys.exit(f"error: {plain(str(error))}")
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads any more, the flush at the end included
            sys.exit(1)
        except Exception as error:
            if stopping.is_set():  # libraries turn Ctrl-C into errors of their own
                _stop()
            if not isinstance(error, OSError) or error.errno is None or error.errno in _OURS:
                raise
            named = "a file" if error.filename is None else plain(str(error.filename))
            sys.exit(f"error: {named}: {os.strerror(error.errno)}")


def _watch() -> threading.Event:
    """End the process a while after Ctrl-C, which the event tells, whatever its main thread waits for."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        return stopping
    receive, send = os.pipe()
    os.set_blocking(send, False)
    signal.set_wakeup_fd(send, warn_on_full_buffer=False)  # written at once, though the main thread be in C code
    if not _trains() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)

    def wait() -> None:
        while signal.SIGINT not in os.read(receive, 1):
            pass
        stopping.set()
        if not _trains():
            _begin_to_end()

    threading.Thread(target=wait, daemon=True, name="waiting for Ctrl-C").start()
    return stopping


def _begin_to_end() -> None:
    """Start `_end`, once: from the main thread where it is free to, else from the one that waits for Ctrl-C."""
    if not _ending.acquire(blocking=False):
        return
    with suppress(RuntimeError):  # the interpreter is already ending
        threading.Thread(target=_end, name="ending after Ctrl-C").start()


def _end() -> None:
    """End the process as soon as its main thread has ended, and after `PATIENCE` in any case.

    It runs in a thread that the interpreter waits for: to take down large libraries takes it many seconds.
    """
    patient_until = time.monotonic() + PATIENCE
    while threading.main_thread().is_alive() and time.monotonic() < patient_until:
        time.sleep(0.02)
    for child in multiprocessing.active_children():
        child.terminate()
    if not _said.is_set():
        os.write(2, f"\n{_words()}\n".encode(errors="backslashreplace"))
    elif not threading.main_thread().is_alive():
        with suppress(OSError, ValueError):
            sys.stdout.flush()
    os._exit(STOPPED)


def _interrupt(number: int, frame: object) -> NoReturn:
    """Raise KeyboardInterrupt once: a second Ctrl-C would break into the cleaning up after the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not _trains():
        _begin_to_end()
    raise KeyboardInterrupt


def _trains() -> bool:
    return len(sys.argv) > 1 and sys.argv[1] in TRAINING


def _stop() -> NoReturn:
    _said.set()
    print(f"\n{_words()}", file=sys.stderr, flush=True)
    sys.exit(STOPPED)


def _words() -> str:
    """What a stopped command leaves, and the command that takes it up again."""
    name = Path(sys.argv[0]).name
    again = shlex.join([*(["python", sys.argv[0]] if name.endswith(".py") else [name]), *sys.argv[1:]])
    if _trains():
        return plain(f"stopped; what was saved stays. To run again: {again}")
    if not kept:
        return plain(f"stopped; no output was written. To begin again: {again}")
    where = ", ".join(map(str, sorted(kept))) if len(kept) <= SHOWN else f"{len(kept)} files"
    return plain(f"stopped; {sum(kept.values()):,} finished rows are kept in {where}. To resume: {again}")


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
    """Yield what shows a text in the last line of a terminal, in place of the text before; elsewhere nothing shows."""
    if not console.is_terminal:
        yield lambda text: None
        return
    from rich.text import Text

    with console.status("") as status:
        yield lambda text: status.update(Text(plain(text), overflow="ellipsis", no_wrap=True))
