"""TRL's GRPO trainer, where it meets vision-language models."""

from typing import Any

from trl.trainer.grpo_trainer import GRPOTrainer

from uni_dpo.online.policy import media_tokens, plain_sampling
from uni_dpo.trainer_mixins import EndsTogether, LoadsByPublishedNames
from uni_dpo.trl.installed import SeeingSampler


class VisionGRPOTrainer(EndsTogether, LoadsByPublishedNames, SeeingSampler, GRPOTrainer):
    """Sample, normalise and learn as TRL's trainer does; only what goes into the model differs.

    Args:
        model: the policy, loaded.
        …: as TRL's `GRPOTrainer` takes them.
    """

    def __init__(self, model: Any, *, args: Any, **kwargs: Any) -> None:
        args.generation_kwargs = _never(media_tokens(model), args.use_vllm) | (args.generation_kwargs or {})
        super().__init__(model, args=args, **kwargs)

    def _generate_single_turn(self, *asked: Any, **options: Any) -> Any:
        with plain_sampling(self.accelerator.unwrap_model(self.model)):
            return super()._generate_single_turn(*asked, **options)


def _never(tokens: list[int], vllm: bool) -> dict[str, Any]:
    """The setting of transformers' sampler, or of vLLM's, that keeps tokens out of the answers."""
    return {"logit_bias": dict.fromkeys(tokens, -100.0)} if vllm else {"suppress_tokens": tokens or None}
