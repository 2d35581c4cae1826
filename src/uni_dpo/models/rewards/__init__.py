"""Models that say how good an answer is, as a whole or step by step.

Nothing heavy is imported before a model is loaded: what a checkpoint is, and whether it fits, is told from its files.
"""

from uni_dpo.models.rewards.checkpoints import RewardModel, RewardModelOptions, load_reward_model
from uni_dpo.models.rewards.conversation import Conversation
from uni_dpo.models.rewards.process_checkpoints import ProcessModel, ProcessModelOptions, load_process_model

__all__ = [
    "Conversation",
    "ProcessModel",
    "ProcessModelOptions",
    "RewardModel",
    "RewardModelOptions",
    "load_process_model",
    "load_reward_model",
]
