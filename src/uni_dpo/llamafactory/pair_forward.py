"""The trainer's forward pass over a pair batch, in one sequence per pair where that is proved equal."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from llamafactory.extras import logging
from torch import Tensor, nn

from uni_dpo.logprobs import ResponseTokens
from uni_dpo.shared_prefix import (
    FLEX_ATTENTION,
    ImageFeatures,
    image_token_id,
    keys_worth_a_token,
    lay_out_pairs,
    pair_scores,
    same_frozen_vision,
    use_attention,
    why_not_shared,
)

logger = logging.get_logger(__name__)

TOKENS = "response_tokens"
"""Key of a collated batch that holds the fields of `ResponseTokens`."""


@dataclass
class SharedPrefixCollator:
    """Any pairwise collator, whose batches are then laid out for `PairForward`."""

    collator: Any
    image_token_id: int | None
    keys_worth_a_token: float

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate a batch; `scores` pass through."""
        batch = self.collator(features)
        inputs, tokens = lay_out_pairs(
            batch, self.image_token_id, keys_worth_a_token=self.keys_worth_a_token, carry=("scores",)
        )
        return {**inputs, TOKENS: vars(tokens)}


class PairForward:
    """Runs policy and reference over laid out batches; the images once for both where their vision is the same."""

    def __init__(self, policy: nn.Module, reference: nn.Module | None) -> None:
        self._policy = policy
        self._images = ImageFeatures() if same_frozen_vision(policy, reference or policy) else None

    @classmethod
    def choose(
        cls,
        mode: str,
        uses_uni_dpo: bool,
        policy: nn.Module,
        reference: nn.Module | None,
        attention: str = "sdpa",
    ) -> "PairForward | None":
        """The shared-prefix pass if `mode` asks for it and the models allow it; None is LlamaFactory's own.

        Args:
            mode: `shared_prefix`, `ordinary`, or `auto`: shared for the Uni-DPO loss, and others left as they are.
            uses_uni_dpo: whether the loss is Uni-DPO.
            policy: the trained model.
            reference: the reference model; None where it is the policy without its adapters, or where there is none.
            attention: see `use_attention`.
        """
        if mode == "ordinary" or (mode == "auto" and not uses_uni_dpo):
            return None
        models = [model for model in (policy, reference) if model is not None]
        for model in models:
            if reason := why_not_shared(model, FLEX_ATTENTION if attention == FLEX_ATTENTION else None):
                logger.warning_rank0(f"pair_forward: two sequences per pair, because {reason}.")
                return None
        for model in models:
            use_attention(model, attention)
        logger.info_rank0("pair_forward: one sequence per pair, its prompt and images only once.")
        return cls(policy, reference)

    def collator(self, collator: Any) -> SharedPrefixCollator:
        """Wrap the trainer's collator."""
        return SharedPrefixCollator(collator, image_token_id(self._policy), keys_worth_a_token(self._policy))

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], *, is_reference: bool, average: bool, ld_alpha: float | None
    ) -> dict[str, Tensor]:
        """Do what LlamaFactory's `concatenated_forward` does.

        Args:
            model: policy or reference, wrapped as the trainer has it.
            batch: from `SharedPrefixCollator`, without `scores`.
            is_reference: whether `model` stands for the reference.
            average: average log-probabilities over an answer's tokens instead of summing them.
            ld_alpha: see `ResponseTokens.sum`.

        Returns:
            The keys that LlamaFactory's trainer reads, each (pairs,). In place of all logits stand their means, and
            for the reference nothing.
        """
        inputs = {key: value for key, value in batch.items() if key != TOKENS}
        with self._vision(model, inputs.get("pixel_values"), is_reference):
            tokens = ResponseTokens(**batch[TOKENS])
            scores = pair_scores(model, inputs, tokens, ld_alpha=ld_alpha, mean_logits=not is_reference)
        averages = scores.logps / scores.lengths
        chosen_logps, rejected_logps = (averages if average else scores.logps).chunk(2)
        output = {
            "chosen_logps": chosen_logps,
            "rejected_logps": rejected_logps,
            "chosen_logps_avg": averages.chunk(2)[0],
        }
        if scores.mean_logits is not None:
            output["chosen_logits"], output["rejected_logits"] = scores.mean_logits.chunk(2)
        return output

    def _vision(self, model: nn.Module, pixels: Tensor | None, is_reference: bool) -> AbstractContextManager[None]:
        if self._images is None:
            return nullcontext()
        return self._images.reused(model, pixels) if is_reference else self._images.kept(model, pixels)
