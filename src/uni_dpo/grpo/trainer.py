"""TRL's GRPO trainer, where it meets vision-language models."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from uni_dpo.logprobs import IGNORE_INDEX, ResponseTokens, response_logps
from uni_dpo.online.policy import media_tokens, plain_sampling
from uni_dpo.shared_prefix import SharedBatch, in_place_of_head, share_rows, shares_rows, unwrapped
from uni_dpo.trainer_mixins import EndsTogether, LoadsByPublishedNames
from uni_dpo.trl.trainer import SeeingSampler

MEDIA = ("pixel_values", "image_grid_thw", "mm_token_type_ids")
"""What of the media inputs can be shared; others leave the pass to TRL."""
COUNTS = ("num_images", "compute_aux_loss")
GIVES_AUX_LOSS = "compute_aux_loss" in signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
"""TRL 1.x gives a third thing, the loss of a router, which none of the models that share has."""
TOKENS_AT_ONCE = 256
"""Positions whose logits are made at once for their entropies."""


class VisionGRPOTrainer(EndsTogether, LoadsByPublishedNames, SeeingSampler, GRPOTrainer):
    """Sample, normalise and learn as TRL's trainer does; only what goes into the model differs.

    Args:
        model: the policy, loaded.
        …: as TRL's `GRPOTrainer` takes them.
    """

    def __init__(self, model: Any, *, args: Any, **kwargs: Any) -> None:
        args.generation_kwargs = _never(media_tokens(model), args.use_vllm) | (args.generation_kwargs or {})
        super().__init__(model, args=args, **kwargs)
        for scored in (self.model, self.ref_model):
            if scored is not None:
                shares_rows(scored)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **media: Any,
    ) -> Any:
        """Score completions, those of one prompt in one run of it; TRL's own way where that cannot be."""
        media = {name: value for name, value in media.items() if not isinstance(value, Tensor) or len(value)}
        known = {name: media.get(name) for name in MEDIA if media.get(name) is not None}
        others = [name for name, value in media.items() if value is not None and name not in (*MEDIA, *COUNTS)]
        others += ["compute_aux_loss"] * bool(media.get("compute_aux_loss"))
        answers = attention_mask.bool()
        answers[:, :-logits_to_keep] = False
        shared = None
        if not others and answers[:, -logits_to_keep].all():
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **known}
            shared = share_rows(model, inputs, answers)
        if shared is None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **media
            )
        labels = torch.where(answers, input_ids, IGNORE_INDEX)[:, -logits_to_keep - 1 :]
        found = _completion_scores(model, shared, labels, self.temperature, compute_entropy)
        return (*found, None) if GIVES_AUX_LOSS else found

    def _generate_single_turn(self, *asked: Any, **options: Any) -> Any:
        with plain_sampling(self.accelerator.unwrap_model(self.model)):
            return super()._generate_single_turn(*asked, **options)


def _never(tokens: list[int], vllm: bool) -> dict[str, Any]:
    """The setting of transformers' sampler, or of vLLM's, that keeps tokens out of the answers."""
    return {"logit_bias": dict.fromkeys(tokens, -100.0)} if vllm else {"suppress_tokens": tokens or None}


def _completion_scores(
    model: Any, shared: SharedBatch, labels: Tensor, temperature: float, compute_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities, and entropies if asked for, (rows, T) each, 0 on padding.

    Args:
        model: a model, wrapped as the trainer has it.
        shared: its inputs.
        labels: (rows, T + 1) the completions' tokens after one ignored column.
        temperature: divides the logits.
        compute_entropy: whether to make the entropies.
    """
    tokens = ResponseTokens.from_labels(labels)
    entropies: list[Tensor] = []

    def score(hidden: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        rows = shared.rows(hidden)[:, -labels.shape[1] :]
        if compute_entropy:
            with torch.no_grad():
                entropies.append(_entropies(rows.flatten(0, 1)[tokens.predictor], project, temperature))
        return response_logps(rows, head, tokens, project=lambda states: project(states) / temperature)

    head = unwrapped(model).get_output_embeddings()
    logps = in_place_of_head(model, shared.inputs, score)
    table = logps.new_zeros(labels.shape[0], labels.shape[1] - 1)
    place = tokens.sequence, tokens.offset
    return table.index_put(place, logps), table.index_put(place, entropies[0]) if entropies else None


def _entropies(hidden: Tensor, project: Callable[[Tensor], Tensor], temperature: float) -> Tensor:
    found = []
    for part in hidden.split(TOKENS_AT_ONCE):
        logps = (project(part).float() / temperature).log_softmax(-1)
        found.append(-(logps.exp() * logps).sum(-1))
    return torch.cat(found)
