"""A run that is killed again and again ends with the file of a run that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BATCH_SIZE = 2
ANSWERS = 3
REQUESTS_PER_BATCH = BATCH_SIZE * ANSWERS * (1 + 2 * 2)
"""At most: split, and for each of two claims ask and check."""
RUN = [sys.executable, "-c", "from uni_dpo.cli.engine import app; app()", "run"]


def config(server, questions_file):
    model = {"backend": "openai", "model": "m", "base_url": server.url, "concurrency": 2}
    return {
        "pipeline": "divide_and_conquer",
        "input": {"path": str(questions_file)},
        "models": dict.fromkeys(("sampler", "splitter", "asker", "checker"), model),
        "sample": {"n": ANSWERS},
        "reward": {"score": "soft"},
        "pairs": {"min_gap": 0.1, "length_balance": "off"},
        "batch_size": BATCH_SIZE,
    }


class Killer:
    """Kills the run's process with the request of a drawn number."""

    def __init__(self):
        self.count = self.target = 0
        self.process = None

    def __call__(self, body, attempt):
        self.count += 1
        if self.target and self.count == self.target:
            os.kill(self.process.pid, signal.SIGKILL)

    def run(self, path, work, target=0):
        self.count, self.target = 0, target
        self.process = subprocess.Popen(
            [*RUN, str(path), "--work-dir", str(work)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        _, errors = self.process.communicate()
        return self.process.returncode, self.count, errors.decode()


def outputs(work):
    files = [work / "dataset" / "pairs.json", *(work / "aside").glob("*")]
    return [path.read_bytes() for path in files]


def rows(path: Path):
    return sorted(line for line in path.read_text().splitlines() if '"commit"' not in line)


@pytest.mark.slow
def test_ten_kills_change_nothing_and_cost_at_most_the_batch_in_flight(chat_server, questions_file, tmp_path):
    killer = Killer()
    server = chat_server(fault=killer)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config(server, questions_file)), encoding="utf-8")  # JSON is YAML
    code, needed, errors = killer.run(path, tmp_path / "calm")
    assert code == 0, errors

    rng = random.Random(6)
    kills = paid = 0
    while True:
        # On average a sixteenth of all requests, so that ten kills come before the end.
        target = rng.randrange(1, needed // 8) if kills < 10 else 0
        code, count, errors = killer.run(path, tmp_path / "killed", target)
        paid += count
        if code == 0:
            break
        assert code == -signal.SIGKILL, errors
        kills += 1
    assert kills == 10
    assert needed <= paid <= needed + kills * REQUESTS_PER_BATCH
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "calm")
    for name in ("0-sample.jsonl", "1-reward.jsonl"):
        assert rows(tmp_path / "killed" / name) == rows(tmp_path / "calm" / name)
