"""Starting a stage's command, here or by a launcher, and ending what an interrupted run left behind."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from uni_dpo.errors import UniDPOError, did_you_mean

MARK = "UNI_DPO_ALIGN_WORK_DIR"
"""The environment variable by which the processes of a work dir are known."""
PATIENCE = 1.0
"""Seconds that a command has for its own ending after Ctrl-C."""
KINDS = (
    "split", "warm-up", "sample", "score", "pair", "calibrate", "register", "check", "train", "validate", "test",
    "benchmarks", "report",
)  # fmt: skip
"""What stages start commands; a launcher may be named for each."""


def read_launchers(given: object) -> dict[str, list[str]]:
    """Return stage kind → the words of its launcher's template.

    Raises:
        UniDPOError: there is no stage of that kind, or no place for the command in a template.
    """
    templates = given if isinstance(given, Mapping) else dict.fromkeys(KINDS, given)
    launchers = {kind: ["{command}"] for kind in KINDS}
    for kind, template in templates.items():
        where = f"launcher.{kind}" if isinstance(given, Mapping) else "launcher"
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS) or f"; known: {', '.join(KINDS)}"
            raise UniDPOError(f"{where}: no stage is of this kind{hint}")
        try:
            words = shlex.split(str(template))
        except ValueError as error:
            raise UniDPOError(f"{where}: {template!r} cannot be split into words: {error}") from None
        if not any("{command}" in word for word in words):
            raise UniDPOError(f"{where}: {template!r} has no {{command}}, which stands for the stage's command")
        launchers[str(kind)] = words
    return launchers


def launched(words: Sequence[str], template: Sequence[str]) -> list[str]:
    """Return the words of a launcher with those of a command put in for `{command}`.

    A word that is `{command}` becomes the command's words; within a longer word (`ssh host "cd /data && {command}"`)
    the command stands as one text, quoted for the shell that the launcher starts elsewhere.
    """
    command = [sys.executable, "-m", "uni_dpo.cli", *words]
    return [
        part
        for word in template
        for part in (command if word == "{command}" else [word.replace("{command}", shlex.join(command))])
    ]


def run_command(
    words: Sequence[str], template: Sequence[str], *, log: Path, work: Path, show: Callable[[str], None]
) -> int:
    """Run a command of this program to its end and return its exit status.

    Args:
        words: of the command, without the program's name.
        template: of the launcher.
        log: file to which everything that it prints is appended.
        work: the work dir, by which its processes are known.
        show: gets its latest line.

    Raises:
        UniDPOError: the launcher's program is not there, or the log cannot be written, as on a full disk.
    """
    command = launched(words, template)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as file:
        _write(file, log, f"$ {shlex.join(command)}\n".encode(errors="surrogateescape"))
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, MARK: str(work)},
            )
        except OSError as error:
            raise UniDPOError(f"launcher: {command[0]} cannot be started ({error.strerror})") from error
        assert process.stdout is not None
        try:
            line = b""
            while chunk := os.read(process.stdout.fileno(), 1 << 16):
                _write(file, log, chunk)
                line = (line + chunk)[-2000:]
                shown = [part for part in line.replace(b"\r", b"\n").split(b"\n") if part.strip()]
                if shown:
                    show(shown[-1].decode(errors="replace").strip())
            return process.wait()
        except BaseException:
            said = _end(process, work)
            with suppress(OSError):
                file.write(said)
            raise


def _write(file: IO[bytes], log: Path, text: bytes) -> None:
    try:
        file.write(text)
    except OSError as error:
        raise UniDPOError(f"{log}: cannot be written ({error.strerror}); make room and run again") from error


def _end(process: "subprocess.Popen[bytes]", work: Path) -> bytes:
    """Let a command end as after Ctrl-C and return its last words; after `PATIENCE`, end it and whatever it started.

    From a terminal the signal has reached it already. Elsewhere it has not, and `srun` ends its job at the second only.
    """
    process.send_signal(signal.SIGINT)
    try:
        said: bytes | None = process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired as error:
        said = error.stdout
    process.kill()
    end_left_over(work)
    return said or b""


def last_lines(log: Path) -> str:
    """Return the end of a log, for a message."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-15:])


def end_left_over(work: Path) -> int:
    """End the processes on this machine that a killed run of this work dir left behind; return how many there were.

    They are known by `MARK` in their environment, which whatever a stage starts inherits.
    """
    import psutil

    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid not in spared and process.environ().get(MARK) == str(work):
                process.kill()
                found.append(process)
    _, left = psutil.wait_procs(found, timeout=10)
    if left:
        raise UniDPOError(f"{work}: process {left[0].pid} of an earlier run does not end; end it and run again")
    return len(found)
