"""What TRL 1.x calls: prompt and answer joined in a batch, one `_compute_loss`, a head that gives log-probabilities.

TRL 0.24 calls other things: `version_0_24.py`.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.data_utils import is_conversational
from trl.trainer.dpo_trainer import DataCollatorForPreference, DataCollatorForVisionPreference, DPOTrainer

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.writing import KEY
from uni_dpo.objective import PairLogps
from uni_dpo.trl.data import SCORES, ScoredPairs, opened, without_absent_images

ROW = ("prompt", "chosen", "rejected", "chat_template_kwargs", "tools")
"""What TRL's vision collator reads of a row, beside its images."""


class FusedPairTrainer(DPOTrainer):
    """TRL 1.x's trainer, asking `pair_losses` for the loss.

    A subclass has `objective`, None for TRL's own losses, `columns`, `scores_in`, `pair_losses` and `logged_terms`; and
    for the ledger `take_keys`, `see` and `note_seen`.
    """

    averaged_losses = ()
    """TRL's losses that take log-probabilities averaged over an answer's tokens; `ipo` averages later."""

    def __init__(self, model: Any, ref_model: Any, args: Any, data_collator: Any, **kwargs: Any) -> None:
        if ref_model is None and _is_whole(model, args, kwargs):
            # TRL would load the reference again by the model's name, which need not be what is in memory.
            ref_model = copy.deepcopy(model).requires_grad_(False).eval()
        if args.precompute_ref_log_probs and _sees(kwargs.get("train_dataset")):
            raise UniDPOError("precompute_ref_log_probs: TRL 1.x cannot for data with images; set it to false")
        super().__init__(model, ref_model, args, data_collator, **kwargs)
        if self.objective is not None:
            self.loss_types: list[str] = []
            self.loss_weights: list[float] = []
        if data_collator is None:
            self.data_collator = ScoredPairs(self._collator(), self.columns)

    def _collator(self) -> Any:
        if self._is_vision_dataset:
            return WholeImagesCollator(processor=self.processing_class, max_length=self.args.max_length)
        return DataCollatorForPreference(
            pad_token_id=self._tokenizer.pad_token_id,
            max_length=self.args.max_length,
            truncation_mode=self.args.truncation_mode,
            pad_to_multiple_of=self.args.pad_to_multiple_of,
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        ours = (*(self.columns or ()), KEY)
        self._signature_columns += [name for name in ours if name not in self._signature_columns]

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        inputs = dict(inputs)
        keys = self.take_keys(inputs)
        scores = self.scores_in(inputs)
        self.see(**{name: inputs[name] for name in SCORES if name in inputs})
        inputs = {name: value for name, value in inputs.items() if name not in SCORES}
        with self._answer_logps(inputs["completion_mask"]) as found:
            # Forward passes and metrics; for the objective of no loss, since there are no loss types.
            result = super()._compute_loss(model, inputs, return_outputs)
        loss, outputs = result if return_outputs else (result, None)
        reference = found[1].chunk(2) if len(found) > 1 else (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
        logps = PairLogps(*found[0].chunk(2), *reference)
        mode = "train" if self.model.training else "eval"
        lengths = inputs["completion_mask"][:, 1:].sum(1).clamp(min=1).chunk(2)
        if self.objective is not None:
            loss = loss + self.pair_losses(logps, lengths, scores, mode).mean()
            for name, value in self.logged_terms().items():
                self._metrics[mode][name].append(value)
        self.see(**vars(logps), **dict(zip(("tokens_chosen", "tokens_rejected"), lengths, strict=True)))
        self.note_seen(mode, keys)
        return (loss, outputs) if return_outputs else loss

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Return the reference's log-probabilities of a batch, as `_compute_loss` takes them."""
        inputs = {name: value for name, value in inputs.items() if name not in (*SCORES, KEY)}
        if self.objective is None:
            return super().compute_ref_log_probs(model, inputs)
        with self._answer_logps(inputs["completion_mask"]):
            return super().compute_ref_log_probs(model, inputs)

    @contextmanager
    def _answer_logps(self, mask: Tensor) -> Iterator[list[Tensor]]:
        """Gather each answer's log-probability from every pass through the fused head in this block.

        Where the settings ask for averages, each token's counts by its answer's length: TRL's sums are averages then.

        Args:
            mask: (2 · pairs, T), 1 at the answers' tokens.

        Returns:
            A list that grows by (2 · pairs,) with each pass, the policy's first.
        """
        mask = mask[:, 1:]
        averaged = self.objective is not None and self.objective.plan.averages_logps
        lengths = mask.sum(1, keepdim=True).clamp(min=1) if averaged else None
        weights = _shared_weights(mask, self.ld_alpha)
        found: list[Tensor] = []

        def gather(module: Any, arguments: Any, output: Any) -> None:
            if getattr(output, "log_probs", None) is not None:
                if lengths is not None:
                    output.log_probs = output.log_probs / lengths
                found.append((output.log_probs[:, -mask.shape[1] :] * weights).sum(1))

        models = [model for model in (self.model, self.ref_model) if model is not None]
        with ExitStack() as hooks:
            for model in models:
                handle = self.accelerator.unwrap_model(model).register_forward_hook(gather)
                hooks.callback(handle.remove)
            yield found


class WholeImagesCollator(DataCollatorForVisionPreference):
    """TRL's collator for images, for images by path too and any number in a row, none of which is cut."""

    def torch_call(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows of `prompt`, `images` or `image`, `chosen` and `rejected`.

        Raises:
            UniDPOError: an image cannot be read, or a prompt leaves no room for an answer.
        """
        batch = super().torch_call([self._row(example) for example in examples])
        if not batch["completion_mask"].any(1).all():
            raise UniDPOError(
                f"a prompt with its images has {self.max_length} tokens or more, and max_length is {self.max_length}: "
                "raise it, set it to None, or make the images smaller"
            )
        return batch

    def _row(self, example: Mapping[str, Any]) -> dict[str, Any]:
        row = {name: example[name] for name in ROW if example.get(name) is not None}
        images = [example["image"]] if example.get("image") is not None else example.get("images") or ()
        row["images"] = [opened(image) for image in images]
        if not is_conversational(row):
            # Templates end an answer; a plain text ends as TRL ends those of datasets without images.
            end = self.processor.tokenizer.eos_token
            row |= {side: row[side].removesuffix(end) + end for side in ("chosen", "rejected")}
        return row


class MixedSampler:
    """What TRL 1.x's GRPO trainer needs for questions of which some have images and some have none; put before it."""

    def __init__(self, model: Any, *, processing_class: Any, **kwargs: Any) -> None:
        # TRL pads tokens on the left itself, and what tells them apart on the side that the tokenizer names.
        getattr(processing_class, "tokenizer", processing_class).padding_side = "left"
        super().__init__(model, processing_class=processing_class, **kwargs)  # type: ignore[call-arg]

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, Any]:
        ids, images, fields = super()._tokenize_prompts(prompts)  # type: ignore[misc]
        # Processors take an empty list for "no image", not None.
        return ids, None if images is None else [shown or [] for shown in images], fields

    def _get_per_token_logps_and_entropies(self, model: Any, *arguments: Any, **inputs: Any) -> Any:
        def seeing(**inputs: Any) -> Any:
            return model(**without_absent_images(inputs))

        return super()._get_per_token_logps_and_entropies(seeing, *arguments, **inputs)  # type: ignore[misc]


def _is_whole(model: Any, args: Any, options: Mapping[str, Any]) -> bool:
    """Whether a model in memory is trained as a whole against a reference in memory, of which no weight is sharded."""
    adapted = options.get("peft_config") is not None or not isinstance(model, PreTrainedModel)
    return not (adapted or args.precompute_ref_log_probs or is_deepspeed_zero3_enabled())


def _sees(dataset: Any) -> bool:
    """Whether TRL takes a dataset for one with images."""
    return dataset is not None and not {"image", "images"}.isdisjoint(next(iter(dataset), {}))


def _shared_weights(mask: Tensor, ld_alpha: float | None) -> Tensor:
    """The weight of every token, (2 · pairs, T): `ld_alpha` past the length of a pair's shorter answer (LD-DPO)."""
    if ld_alpha is None:
        return mask
    shorter = mask.sum(1).view(2, -1).amin(0).repeat(2)
    return torch.where(mask.cumsum(1) > shorter[:, None], ld_alpha, 1.0) * mask
