"""The engine over Ray, as users start it: in a process of its own, which Ray may end whatever happens to it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PLUGIN = str(Path(__file__).parent / "plugins" / "counting.py")


@pytest.fixture
def run(tmp_path, questions_file):
    """Run a config and return the ended process; its work dir is `tmp_path / name`, where relative paths start."""

    def run(name, model, **changes):
        config = {
            "pipeline": "verifiable",
            "plugins": [PLUGIN],
            "input": {"path": str(questions_file)},
            "models": {"sampler": model},
            "sample": {"n": 4, "max_tokens": 6},
            "reward": {"grader": "size"},
            "pairs": {"min_gap": 1.0},
            "batch_size": 3,
            "ray": {"workers": 2},
            **changes,
        }
        file = tmp_path / f"{name}.yaml"
        file.write_text(json.dumps(config))
        command = [sys.executable, "-m", "uni_dpo.cli", "engine", "run", str(file), "--work-dir", name]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def two_nodes() -> Iterator[dict[str, Any]]:
    """A cluster of two nodes with a CPU each: what `two_nodes.py` says of it."""
    words = [sys.executable, str(Path(__file__).with_name("two_nodes.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    cluster = subprocess.Popen(words, **pipes, text=True, start_new_session=True)
    try:
        yield json.loads(next(line for line in cluster.stdout if line.startswith("{")))
        cluster.communicate(timeout=60)
    finally:
        if cluster.poll() is None:
            os.killpg(cluster.pid, signal.SIGKILL)


def rows(work):
    return sorted(line for line in (work / "0-sample.jsonl").read_text().splitlines() if '"commit"' not in line)


def test_rows_equal_those_of_one_process(tmp_path, run, questions, tiny_qwen2_vl):
    for engine in ("local", "ray"):
        ended = run(engine, {"model": str(tiny_qwen2_vl)}, reward={"grader": "exact"}, engine=engine)
        assert "no pairs came" in ended.stderr  # an untrained model knows no digit
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    assert len(rows(tmp_path / "ray")) == len(questions)


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path, run, questions):
    log, died = tmp_path / "log", tmp_path / "died"
    ended = run("ray", {"backend": "counting", "log": str(log), "die_once": str(died)}, engine="ray")
    assert ended.returncode == 0, ended.stderr
    assert died.exists()
    manifest = json.loads((tmp_path / "ray" / "manifest.json").read_text())
    assert manifest["stages"]["sample"]["counts"]["usage"]["requests"] == len(questions)
    assert len(questions) < len(log.read_text().splitlines()) <= len(questions) + 3
    assert run("local", {"backend": "counting"}).returncode == 0
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    one, other = ((tmp_path / name / "dataset" / "pairs.json").read_bytes() for name in ("ray", "local"))
    assert one == other


def refused(ended):
    """The one line of an ended run that says what to do."""
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    return line


def test_a_worker_that_dies_again_and_again_ends_the_run_in_one_line(run):
    ended = run("ray", {"backend": "counting", "deadly": True}, engine="ray")
    assert "a worker of Ray died 4 times over the same questions" in refused(ended)


def test_a_fault_of_the_input_in_a_worker_is_one_plain_error(tmp_path, run):
    ended = run("ray", {"model": str(tmp_path / "gone")}, engine="ray")
    assert "cannot be loaded; there is no such folder" in refused(ended)


def test_what_ray_cannot_give_is_said_at_the_start(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run("away", {"backend": "counting"}, engine="ray", ray={"address": address})
    assert f"no cluster answers at {address}" in refused(ended)
    ended = run("gpus", {"backend": "counting"}, engine="ray", ray={"workers": 2, "gpus_per_worker": 64})
    assert "2 workers reserve 128 GPUs" in refused(ended)


def test_two_nodes_share_the_work_and_one_may_be_killed(tmp_path, run, questions, two_nodes):
    """Paths are relative to where the run was started, not to where a node was."""
    address = {"address": two_nodes["address"]}
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    model = {"backend": "counting", "nodes": "nodes", "held": two_nodes["other"]}
    killed: list[bool] = []

    def kill() -> None:
        """Kill the second node while it holds a batch, and once the first has done all others."""
        deadline = time.monotonic() + 120
        others = tmp_path / "ray" / "0-sample.jsonl"
        while not (nodes / two_nodes["other"]).exists() or len(answered(others)) < len(questions) - 3:
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        os.kill(two_nodes["pid"], signal.SIGKILL)
        killed.append(True)

    watcher = threading.Thread(target=kill)
    watcher.start()
    ended = run("ray", model, engine="ray", ray={"workers": 2, **address})
    watcher.join()
    assert ended.returncode == 0, ended.stderr
    assert killed
    assert len(list(nodes.iterdir())) == 2
    assert run("local", {"backend": "counting"}).returncode == 0
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    one, other = ((tmp_path / name / "dataset" / "pairs.json").read_bytes() for name in ("ray", "local"))
    assert one == other
    ended = run("gpus", model, engine="ray", ray={"gpus_per_worker": 1, **address})
    assert "a worker reserves 1 CPUs, 1 GPUs, and no node of the cluster has that" in refused(ended)


def answered(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if '"commit"' not in line] if file.is_file() else []
