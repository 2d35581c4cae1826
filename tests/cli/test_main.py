"""What the command line prints where a command fails."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from uni_dpo import cli
from uni_dpo.cli import app as commands
from uni_dpo.cli import entry
from uni_dpo.cli.entry import PATIENCE
from uni_dpo.errors import UniDPOError


@pytest.fixture(autouse=True)
def _not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the Ctrl-C of whoever runs these tests to pytest."""
    monkeypatch.setattr(entry, "_watch", threading.Event)


def exit_code(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> object:
    def fail() -> None:
        raise error

    monkeypatch.setattr(commands, "app", fail)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return exit_.value.code


def test_a_fault_of_the_input_is_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code(monkeypatch, UniDPOError("pairs.json, row 3: no")) == "error: pairs.json, row 3: no"


def test_a_full_or_protected_disk_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/checkout/src/a.py")
    assert exit_code(monkeypatch, error) == "error: /checkout/src/a.py: Permission denied"
    below = OSError(errno.ENOTDIR, "", "notes.txt/run")
    assert exit_code(monkeypatch, below) == "error: notes.txt/run: Not a directory"
    assert exit_code(monkeypatch, OSError(errno.ENOSPC, "")) == "error: a file: No space left on device"


def test_ctrl_c_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code(monkeypatch, KeyboardInterrupt()) == 130


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(commands, "app", fail)
    with pytest.raises(OSError, match="Bad file"):
        cli.main()


def test_what_is_printed_is_text_whatever_is_in_it(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def say() -> None:
        print("row \x1b[31mred\x1b]0;title\x07 \u202eback\ttab \x9b1m × é")
        raise UniDPOError("no file \x1b[2J\r.png")

    monkeypatch.setattr(commands, "app", say)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    shown = capsysbinary.readouterr().out.decode()
    assert shown == "row \\u001b[31mred\\u001b]0;title\\u0007 \\u202eback\ttab \\u009b1m × é\n"
    assert exit_.value.code == "error: no file \\u001b[2J\\r.png"


def started(code: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def test_a_terminal_of_ascii_gets_escapes() -> None:
    code = r"from uni_dpo.cli import run; run(lambda: print('3 \u00d7 4 \u2192 \U0001f600'))"
    process = started(code, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    assert process.communicate() == ("3 \\u00d7 4 \\u2192 \\ud83d\\ude00\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_stop_nothing(closed: str, tmp_path: Path) -> None:
    code = "from uni_dpo.cli import run; run(lambda: print(open('kept', 'w').write('x')))"
    command = ["sh", "-c", f'"$1" -c "$2" {closed}', "sh", sys.executable, code]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "kept").read_text() == "x", "a stream that was closed gives its number to no other file"


WAITING = """
import sys, threading, time
from uni_dpo.cli import run
from uni_dpo.storage.rowlog import RowLog

def work():
    RowLog(sys.argv[1]).append([{"id": "a"}, {"id": "b"}])
    thread = threading.Thread(target=time.sleep, args=(60,))
    thread.start()
    print("waiting", flush=True)
    try:
        thread.join()
    finally:
        thread.join()  # as a pool of threads does, whose requests a server does not answer

run(work)
"""


def test_ctrl_c_ends_in_two_seconds_and_says_what_is_kept(tmp_path: Path) -> None:
    process = started(WAITING, str(tmp_path / "log.jsonl"))
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)  # as the impatient do: it changes nothing
    _, said = process.communicate(timeout=30)  # what it waits for takes a minute
    assert PATIENCE < 2
    assert process.returncode == 130
    (line,) = said.strip().splitlines()
    assert line.startswith(f"stopped; 2 finished rows are kept in {tmp_path}/log.jsonl. To resume: ")
    assert line.endswith(f" {tmp_path}/log.jsonl")


TAKEN_DOWN_SLOWLY = """
import atexit, time
from uni_dpo.cli import run

def work():
    print("waiting", flush=True)
    time.sleep(60)

atexit.register(time.sleep, 60)
run(work)
"""


def test_ctrl_c_does_not_wait_for_libraries_to_be_taken_down() -> None:
    process = started(TAKEN_DOWN_SLOWLY)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.strip().startswith("stopped; no output was written. To begin again: ")


@pytest.mark.parametrize("colours", [{}, {"FORCE_COLOR": "1"}])
def test_cells_of_tables_are_text(colours: dict[str, str]) -> None:
    code = (
        "from rich.table import Table; from uni_dpo.cli import run; "
        "from uni_dpo.cli.entry import print_tables; table = Table('[bold]head'); "
        r"table.add_row('\x1b[31mred'); table.add_row('a[/b]\x1b]0;t'); "
        "run(lambda: print_tables([table]))"
    )
    said, faults = started(code, **colours).communicate()
    assert not faults
    assert all(text in said for text in ("[bold]head", r"\u001b[31mred", r"a[/b]\u001b]0;t"))
    assert ("\x1b" in said) == bool(colours)  # Rich's own
    assert "\x1b[31mred" not in said
