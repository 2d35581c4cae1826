"""The DPO stage as LlamaFactory exports it, taught `pref_loss: uni_dpo`."""

from .workflow import run_dpo

# isort: split
#! Below this line are additions for Uni-DPO.
from uni_dpo.llamafactory import register

register()  # also puts its own `run_dpo` in the place of the name imported above
#! Above this line are additions for Uni-DPO.

__all__ = ["run_dpo"]
