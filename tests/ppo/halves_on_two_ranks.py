"""Each of two processes takes half of a given rollout; the first writes the gradient of their common update.

python -m torch.distributed.run --nproc-per-node 2 halves_on_two_ranks.py CONFIG.json ROLLOUT.pt GRADIENT.pt
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch

from uni_dpo.engine import Question
from uni_dpo.online import RewardOptions
from uni_dpo.ppo.config import PPOConfig
from uni_dpo.ppo.policy import Rollout
from uni_dpo.ppo.trainer import PPOTrainer

settings = json.loads(Path(sys.argv[1]).read_text())
settings["reward"] = RewardOptions(function="exact")
run = PPOTrainer(PPOConfig(**settings), [Question("a", "Which digit?")], lambda questions, answers: [])
rollout = Rollout(**torch.load(sys.argv[2], weights_only=True))
half = len(rollout.answers) // 2
first = run.accelerator.process_index * half
parts = {field.name: getattr(rollout, field.name)[first : first + half] for field in dataclasses.fields(rollout)}
found: list[torch.Tensor] = []
run.optimizer.step = lambda: found.extend(weight.grad.clone().flatten() for weight in run.trained.values())
run._update(Rollout(**parts), list(range(half)))
if run.accelerator.is_main_process:
    torch.save(torch.cat(found), sys.argv[3])
run.accelerator.wait_for_everyone()
run.accelerator.end_training()
