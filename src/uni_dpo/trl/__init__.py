"""Uni-DPO for TRL: `UniDPOTrainer` and `UniDPOConfig` in place of `DPOTrainer` and `DPOConfig`."""

from uni_dpo.trl.availability import mend_availability

mend_availability()

from uni_dpo.trl.arguments import TRLUniDPOConfig as UniDPOConfig  # noqa: E402  # TRL cannot be imported without this
from uni_dpo.trl.trainer import UniDPOTrainer  # noqa: E402

__all__ = ["UniDPOConfig", "UniDPOTrainer"]
