"""TRL's GRPO trainer, where it meets vision-language models and transformers 5."""

from typing import Any

from trl.trainer.grpo_trainer import GRPOTrainer

from uni_dpo.online.policy import media_tokens, plain_sampling
from uni_dpo.trainer_mixins import EndsTogether, LoadsByPublishedNames
from uni_dpo.trl.compatibility import with_token_types, with_warnings_issued

VISION_INPUTS = ("pixel_values", "image_grid_thw")


class VisionGRPOTrainer(EndsTogether, LoadsByPublishedNames, GRPOTrainer):
    """Sample, normalise and learn as TRL's trainer does; only what goes into the model differs.

    Args:
        model: the policy, loaded.
        …: as TRL's `GRPOTrainer` takes them.
    """

    def __init__(self, model: Any, *, args: Any, **kwargs: Any) -> None:
        args.generation_kwargs = _never(media_tokens(model), args.use_vllm) | (args.generation_kwargs or {})
        super().__init__(with_warnings_issued(model), args=args, **kwargs)

    def _generate_single_turn(self, prompts: list[Any], images: list[Any] | None) -> tuple[Any, ...]:
        with plain_sampling(self.accelerator.unwrap_model(self.model)):
            *sampled, inputs = super()._generate_single_turn(prompts, images)
        # Told from the token ids again, once prompts and answers are joined.
        inputs.pop("mm_token_type_ids", None)
        return *sampled, inputs

    def _get_per_token_logps_and_entropies(self, model: Any, *arguments: Any, **inputs: Any) -> Any:
        return super()._get_per_token_logps_and_entropies(_seeing(model), *arguments, **inputs)


def _never(tokens: list[int], vllm: bool) -> dict[str, Any]:
    """The setting of transformers' sampler, or of vLLM's, that keeps tokens out of the answers."""
    return {"logit_bias": dict.fromkeys(tokens, -100.0)} if vllm else {"suppress_tokens": tokens or None}


def _seeing(model: Any) -> Any:
    """`model` with token types, and without pixels where none of the rows has an image."""
    typed = with_token_types(model)

    def forward(input_ids: Any, **inputs: Any) -> Any:
        blind = "pixel_values" in inputs and not len(inputs["pixel_values"])
        kept = {name: value for name, value in inputs.items() if not (blind and name in VISION_INPUTS)}
        return typed(input_ids, **kept)

    return forward
