"""What trainers share: runs end together, stop where the loss is no number, and flash-attention can be called."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from uni_dpo.errors import UniDPOError
from uni_dpo.trainer_mixins import refuse_broken_flash_attention, refuse_not_a_number

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


THREADS = """
from pathlib import Path

import torch
from accelerate import PartialState
from uni_dpo.trainer_mixins import process_group


def gloo_threads():
    return sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))


@process_group()
def train():
    PartialState(cpu=True)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    model.itself = [model]  # a circle, as trainers have
    model(torch.ones(1, 2)).sum().backward()
    return gloo_threads()


before, after = train(), gloo_threads()
assert before > 0 and after == 0, (before, after)
"""


@pytest.mark.slow
def test_no_thread_of_the_group_outlives_a_training(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(THREADS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_installed_transformers_can_call_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real function of transformers around a kernel that gives back its queries."""
    from transformers.integrations import flash_attention

    def kernel(query: Any, *_: Any, **__: Any) -> Any:
        return query

    monkeypatch.setattr(flash_attention, "_flash_attention_forward", kernel)
    layer = torch.nn.Linear(1, 1)
    layer.config = SimpleNamespace(_attn_implementation="flash_attention_2", _is_quantized=False, dtype=torch.bfloat16)
    layer.is_causal = True
    query = torch.randn(1, 2, 3, 4, dtype=torch.bfloat16)
    if transformers.__version__ == "5.6.0":
        with pytest.raises(UniDPOError, match=r"5\.6\.0 cannot run flash-attention"):
            refuse_broken_flash_attention()
        return
    refuse_broken_flash_attention()
    output, _ = flash_attention.flash_attention_forward(layer, query, query, query, None)
    assert torch.equal(output, query.transpose(1, 2))


def test_the_release_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "__version__", "5.6.0")
    with pytest.raises(UniDPOError, match="install another"):
        refuse_broken_flash_attention()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(value: float) -> None:
    refuse_not_a_number(torch.tensor(1.5), 6)
    broken = {"policy": torch.tensor([1.0, value]), "reference": torch.ones(2)}
    with pytest.raises(UniDPOError, match=rf"^step 7: the loss is {value}, and so is policy; "):
        refuse_not_a_number(torch.tensor(value), 6, **broken)
