"""Two processes learn what one would."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from uni_dpo.demo.digits import QUESTION, Digit
from uni_dpo.engine import Question
from uni_dpo.ppo.trainer import PPOTrainer


@pytest.mark.slow
def test_two_processes_with_half_a_rollout_each_have_the_gradient_of_the_whole(
    config, digits: dict[str, list[Digit]], tmp_path: Path
) -> None:
    """Answers of different lengths, so that a mean of the processes' means would be another number."""
    settings = config(max_grad_norm=1e6)
    questions = [Question(digit.image.stem, QUESTION, (str(digit.image),)) for digit in digits["train"][:8]]
    run = PPOTrainer(settings, questions, lambda questions, answers: [len(answer) / 10 for answer in answers])
    rollout = run._roll_out(questions)
    answers = [answer[: 1 + row % 5] for row, answer in enumerate(rollout.answers)]
    width = torch.arange(rollout.mask.shape[1])
    mask = (width < torch.tensor([[len(answer)] for answer in answers])).float()
    rollout = dataclasses.replace(rollout, answers=answers, mask=mask)
    alone: list[torch.Tensor] = []
    run.optimizer.step = lambda: alone.extend(weight.grad.clone().flatten() for weight in run.trained.values())
    run._update(rollout, list(range(8)))

    torch.save(vars(rollout), tmp_path / "rollout.pt")
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(settings) | {"questions": None}))
    script = Path(__file__).with_name("halves_on_two_ranks.py")
    files = [str(tmp_path / name) for name in ("config.json", "rollout.pt", "gradient.pt")]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launch, str(script), *files],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        timeout=180,
        text=True,
    )
    assert done.returncode == 0, done.stderr[:6000]
    together = torch.load(tmp_path / "gradient.pt", weights_only=True)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-3)
    assert together.abs().max() > 1e-3
