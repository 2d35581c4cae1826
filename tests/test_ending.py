"""Processes end a run together: none is aborted by an operation that it still had to finish."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
import sys
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import Trainer

from uni_dpo.ending import EndsTogether


class Hurried(Trainer):
    """Goes on with operations under way."""

    def __init__(self) -> None:
        self.accelerator = PartialState(cpu=True)
        self.model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))

    def train(self) -> None:
        for _ in range(40):
            dist.all_reduce(torch.ones(3_000_000), async_op=True)

    evaluate = train


class Waiting(EndsTogether, Hurried):
    """The same, and waits."""


trainer = {"hurried": Hurried, "waiting": Waiting}[sys.argv[1]]()
getattr(trainer, sys.argv[2])()
'''


def end(tmp_path: Path, trainer: str, work: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "run.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*torchrun, "run.py", trainer, work], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize("work", ["train", "evaluate"])
def test_none_ends_with_an_operation_under_way(work: str, tmp_path: Path) -> None:
    done = end(tmp_path, "waiting", work)
    assert done.returncode == 0, done.stderr[-2000:]
