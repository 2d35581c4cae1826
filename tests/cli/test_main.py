"""What the command line prints where a command fails."""

import errno

import pytest

from uni_dpo import cli
from uni_dpo.cli import app as commands
from uni_dpo.errors import UniDPOError


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
