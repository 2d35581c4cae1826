"""The trainer's forward pass over a pair batch, in one sequence per question where that is proved equal."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from llamafactory.extras import logging
from torch import Tensor, nn

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory.data import CARRIED, ScoredPairCollator, sees_apart
from uni_dpo.logprobs import ResponseTokens
from uni_dpo.matmul import use_onednn
from uni_dpo.shared_prefix.attention import shared_attention, use_attention
from uni_dpo.shared_prefix.families import (
    image_token_id,
    keys_worth_a_token,
    tells_images_apart,
    unwrapped,
    why_not_shared,
)
from uni_dpo.shared_prefix.forward import ImageFeatures, pair_scores, same_frozen_vision
from uni_dpo.shared_prefix.image_store import ImageStore, image_keys
from uni_dpo.shared_prefix.questions import share_questions

logger = logging.get_logger(f"llamafactory.{__name__}")  # below LlamaFactory's own, which shows what is INFO

TOKENS = "response_tokens"
"""Key of a collated batch that holds the fields of `ResponseTokens`."""

KEYS = "image_keys"
"""Key of a collated batch that holds what its images are known by in an `ImageStore`."""


@dataclass
class SharedPrefixCollator:
    """Batches laid out for `PairForward`: a question's prompt and images once, its different answers once.

    Attributes:
        collator: makes batches of rows, and the scores of pairs.
        image_token_id: the id that stands for image features; None for text models.
        keys_worth_a_token: see `share_questions`.
        names_images: whether batches hold what their images are known by.
    """

    collator: ScoredPairCollator
    image_token_id: int | None
    keys_worth_a_token: float
    names_images: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate a batch; what is carried comes first, since Trainer counts by the first tensor."""
        carried = self.collator.carried(features)
        shared: tuple[dict[str, Any], ResponseTokens] | str
        if sees_apart(features):
            shared = "the two answers of a pair see different images (rejected_images)"
        else:
            keys = self.keys_worth_a_token
            shared = share_questions(features, self.collator.rows, self.image_token_id, keys_worth_a_token=keys)
        if isinstance(shared, str):
            if shared:
                logger.warning_rank0_once(f"Some batches are trained as two sequences per pair: {shared}.")
            batch = self.collator(features)
            tokens = ResponseTokens.from_labels(batch.pop("labels"))
            inputs = {key: value for key, value in batch.items() if key not in CARRIED}
        else:
            inputs, tokens = shared
        if self.names_images:
            inputs[KEYS] = image_keys(inputs)
        fields = {name: value for name, value in vars(tokens).items() if value is not None}
        return {**carried, TOKENS: dict(sorted(fields.items(), key=lambda item: item[0] != "rows")), **inputs}


class PairForward:
    """Runs policy and reference over laid out batches; the images once for both where their vision is the same."""

    def __init__(self, policy: nn.Module, reference: nn.Module | None, store: ImageStore | None = None) -> None:
        self._policy = policy
        self._images = ImageFeatures() if same_frozen_vision(policy, reference or policy) else None
        self._store = store

    @classmethod
    def choose(
        cls,
        policy: nn.Module,
        reference: nn.Module | None,
        attention: str = "sdpa",
        store: ImageStore | None = None,
    ) -> "PairForward | None":
        """Return the shared-prefix pass if the models allow it; None is LlamaFactory's own.

        Args:
            policy: the trained model.
            reference: None where it is the policy without its adapters, or where there is none.
            attention: see `shared_attention`.
            store: where image features are kept; the models must not train or differ in what makes them.

        Raises:
            UniDPOError: image features can't be kept for these models.
        """
        models = [model for model in (policy, reference) if model is not None]
        for model in models:
            if reason := why_not_shared(model, shared_attention(model, attention)):
                logger.warning_rank0(f"pair_forward: two sequences per pair, because {reason}.")
                if store is not None:
                    logger.warning_rank0("keep_image_features: not kept, since pairs are two sequences.")
                return None
        for model in models:
            use_attention(model, attention)
            use_onednn(unwrapped(model).model)
        logger.info_rank0("pair_forward: one sequence per question, its prompt, images and each answer only once.")
        forward = cls(policy, reference, store)
        fault = None
        if not tells_images_apart(policy):
            fault = "gives the features of all images of a batch as one"
        elif forward._images is None:
            fault = "has no vision tower and projector that are frozen and the same in its reference"
        if store is not None and fault:
            raise UniDPOError(f"keep_image_features: this model {fault}: leave it out")
        return forward

    def collator(self, collator: Any) -> SharedPrefixCollator:
        """Wrap the trainer's collator."""
        return SharedPrefixCollator(
            collator,
            image_token_id(self._policy),
            keys_worth_a_token(self._policy),
            names_images=self._store is not None,
        )

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
            The keys that LlamaFactory's trainer reads, each (pairs,), and `lengths`, the tokens scored of each row.
            In place of all logits stand their means, and for the reference nothing.
        """
        inputs = {key: value for key, value in batch.items() if key not in (TOKENS, KEYS)}
        with ExitStack() as vision:
            if self._store is not None and batch.get(KEYS):
                vision.enter_context(self._store.used(model, batch[KEYS]))
            if self._images is not None:
                share = self._images.reused if is_reference else self._images.kept
                vision.enter_context(share(model, inputs.get("pixel_values")))
            tokens = ResponseTokens(**batch[TOKENS])
            scores = pair_scores(model, inputs, tokens, ld_alpha=ld_alpha, mean_logits=not is_reference)
        averages = scores.logps / scores.lengths
        chosen_logps, rejected_logps = (averages if average else scores.logps).chunk(2)
        output = {
            "chosen_logps": chosen_logps,
            "rejected_logps": rejected_logps,
            "chosen_logps_avg": averages.chunk(2)[0],
            "lengths": scores.lengths,
        }
        if scores.mean_logits is not None:
            output["chosen_logits"], output["rejected_logits"] = scores.mean_logits.chunk(2)
        return output
