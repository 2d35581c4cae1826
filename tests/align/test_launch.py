"""How commands are started, logged, and ended."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from uni_dpo.align.launch import MARK, PATIENCE, end_left_over, last_lines, launched, run_command
from uni_dpo.cli.entry import STOPPED
from uni_dpo.errors import UniDPOError

ITSELF = ["{command}"]


def test_a_launcher_gets_words_or_one_quoted_text():
    ours = [sys.executable, "-m", "uni_dpo.cli"]
    assert launched(["train", "a b.yaml"], ITSELF) == [*ours, "train", "a b.yaml"]
    assert launched(["train"], ["srun", "--gpus=8", "{command}"]) == ["srun", "--gpus=8", *ours, "train"]
    remote = launched(["train", "a b; rm x"], ["ssh", "host", "cd /data && {command}"])
    assert remote == ["ssh", "host", f"cd /data && {sys.executable} -m uni_dpo.cli train 'a b; rm x'"]


def test_what_a_command_prints_is_logged_and_its_status_returned(tmp_path):
    log, shown = tmp_path / "logs" / "a.log", []
    assert run_command(["--version"], ITSELF, log=log, work=tmp_path, show=shown.append) == 0
    assert run_command(["engine", "run"], ITSELF, log=log, work=tmp_path, show=shown.append) == 2
    text = log.read_text()
    assert text.startswith(f"$ {sys.executable} -m uni_dpo.cli --version\n")
    assert "Missing argument" in text
    assert "Missing argument" in last_lines(log)
    assert shown


def test_a_launcher_starts_the_command(tmp_path):
    """`env` stands for `srun` and its like: a program that runs the words that follow its own."""
    log = tmp_path / "a.log"
    template = ["env", "UNI_DPO_TEST=1", "sh", "-c", "echo $UNI_DPO_TEST; {command}"]
    assert run_command(["--version"], template, log=log, work=tmp_path, show=print) == 0
    assert log.read_text().splitlines()[1] == "1"
    assert run_command(["--version"], ["env", "{command}"], log=log, work=tmp_path, show=print) == 0


def test_a_launcher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UniDPOError, match="launcher: no-such-launcher cannot be started"):
        run_command(["--version"], ["no-such-launcher", "{command}"], log=tmp_path / "a", work=tmp_path, show=print)


def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(UniDPOError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        run_command(["--version"], ITSELF, log=Path("/dev/full"), work=tmp_path, show=print)


def test_only_what_this_work_dir_left_behind_is_ended(tmp_path):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours, theirs = (
        subprocess.Popen(sleep, env={**os.environ, MARK: str(tmp_path / name)}) for name in ("ours", "theirs")
    )
    try:
        deadline = time.monotonic() + 20
        while not (ended := end_left_over(tmp_path / "ours")) and time.monotonic() < deadline:
            time.sleep(0.05)  # the child has its environment once it runs
        assert ended == 1
        assert not psutil.pid_exists(ours.pid)
        assert psutil.pid_exists(theirs.pid)
        assert theirs.poll() is None
    finally:
        for process in (ours, theirs):
            process.kill()
            process.wait()


AT_WORK = """
import signal, subprocess, sys, time
def end(number, frame):
    print("ended in order", flush=True)
    sys.exit()
signal.signal(signal.SIGINT, end if sys.argv[1] == "hears" else signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("at work:", child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("stage", "number"), [("hears", signal.SIGTERM), ("deaf", signal.SIGINT)])
def test_a_stopped_run_ends_its_stage_and_all_that_it_started(settings, tmp_path, stage, number):
    assert PATIENCE < 2
    (tmp_path / "stage.py").write_text(AT_WORK)
    launcher = f"{shlex.join([sys.executable, str(tmp_path / 'stage.py'), stage])} {{command}}"
    file = tmp_path / "align.yaml"
    file.write_text(yaml.safe_dump(settings(launcher=launcher)))
    words = [sys.executable, "-m", "uni_dpo.cli", "align", str(file)]
    run = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "work" / "logs" / "validate.log"
    while not log.is_file() or "at work: " not in log.read_text():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(number)
    time.sleep(0.1)
    run.send_signal(number)  # as the impatient do: it changes nothing
    _, said = run.communicate(timeout=50)  # the stage would take a minute
    assert run.returncode == STOPPED
    assert said.strip().startswith("stopped; what was saved stays. To run again: ")
    assert said.strip().endswith(f"align {file}")
    child = int(log.read_text().split("at work: ")[1].split()[0])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert ("ended in order" in log.read_text()) is (stage == "hears")
