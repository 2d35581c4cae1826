"""PPO for vision-language models: the policy answers questions about images and learns from the rewards.

`train_ppo` runs a config. The mathematics stands in `uni_dpo.ppo.losses`. Torch comes with the first of these names.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uni_dpo.ppo.config import PPOConfig
    from uni_dpo.ppo.trainer import PPOTrainer, train_ppo

__all__ = ["PPOConfig", "PPOTrainer", "train_ppo"]


def __getattr__(name: str) -> Any:
    """Import one of the public names on its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{'config' if name == 'PPOConfig' else 'trainer'}"), name)
