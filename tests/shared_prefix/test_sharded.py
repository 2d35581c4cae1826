"""FSDP: a shared sequence has the same gradients where every rank holds a part of the model."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(["qwen2_vl"], marks=pytest.mark.nightly),
        pytest.param(["qwen3_vl", "checkpointing"], marks=pytest.mark.nightly),
        ["qwen3_5", "checkpointing"],
        ["qwen3_vl", "kept"],
    ],
    ids=" ".join,
)
def test_two_ranks_with_a_part_of_the_model_each_have_the_gradients_of_the_whole(
    settings: list[str], tmp_path: Path
) -> None:
    """Also where only one of them has its image features on disk."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = Path(__file__).with_name("sharded_on_two_ranks.py")
    run = subprocess.run([*launch, str(script), *settings, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
