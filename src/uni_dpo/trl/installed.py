"""Which of this folder's two files knows the TRL that is installed."""

from trl.trainer import dpo_trainer

from uni_dpo.errors import UniDPOError

if hasattr(dpo_trainer, "add_fused_lm_head"):
    from uni_dpo.trl.version_1 import FusedPairTrainer as PairTrainer
    from uni_dpo.trl.version_1 import MixedSampler as SeeingSampler
elif hasattr(dpo_trainer.DPOTrainer, "concatenated_forward"):
    from uni_dpo.trl.version_0_24 import ConcatenatedPairTrainer as PairTrainer
    from uni_dpo.trl.version_0_24 import TypedSampler as SeeingSampler  # type: ignore[assignment]
else:
    raise UniDPOError("this TRL has another DPOTrainer: pip install trl==1.16.0, or beside LlamaFactory trl==0.24.0")

__all__ = ["PairTrainer", "SeeingSampler"]
