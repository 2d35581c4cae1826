"""Processes end a run together: none is aborted by an operation that it still had to finish."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
import sys

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import Trainer

from uni_dpo.trainer_mixins import EndsTogether


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


getattr(Waiting(), sys.argv[1])()
'''


@pytest.mark.slow
@pytest.mark.parametrize("work", ["train", "evaluate"])
def test_none_ends_with_an_operation_under_way(work: str, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "run.py", work], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
