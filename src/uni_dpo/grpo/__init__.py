"""GRPO for vision-language models, by TRL: groups of answers to one question, each judged against the others.

`train_grpo` runs a config. The trainer is TRL's `GRPOTrainer`; ours is what stands before it. TRL comes with the first
of these names.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uni_dpo.grpo.config import GRPOSettings
    from uni_dpo.grpo.trainer import train_grpo

__all__ = ["GRPOSettings", "train_grpo"]


def __getattr__(name: str) -> Any:
    """Import one of the public names on its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{'config' if name == 'GRPOSettings' else 'trainer'}"), name)
