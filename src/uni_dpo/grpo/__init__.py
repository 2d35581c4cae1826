"""GRPO for vision-language models, by TRL: groups of answers to one question, each judged against the others.

`train_grpo` runs a config. The trainer is TRL's `GRPOTrainer`; ours is what stands before it.
"""

from uni_dpo.grpo.config import GRPOSettings
from uni_dpo.grpo.run import train_grpo

__all__ = ["GRPOSettings", "train_grpo"]
