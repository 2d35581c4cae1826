"""PPO for vision-language models: the policy answers questions about images and learns from the rewards.

`train_ppo` runs a config. The mathematics stands in `uni_dpo.ppo.losses`.
"""

from uni_dpo.ppo.config import PPOConfig
from uni_dpo.ppo.trainer import PPOTrainer, train_ppo

__all__ = ["PPOConfig", "PPOTrainer", "train_ppo"]
