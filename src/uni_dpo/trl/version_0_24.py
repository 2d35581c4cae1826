"""What TRL 0.24 calls: prompts and answers apart until the forward pass, one method per part of the loss.

TRL 1.x calls other things: `version_1.py`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.writing import KEY
from uni_dpo.objective import PairLogps
from uni_dpo.shared_prefix.families import image_token_id, unwrapped
from uni_dpo.trainer_mixins import REFERENCE_ADAPTER, add_reference_adapter
from uni_dpo.trl.data import SCORES, ScoredPairs, opened, without_absent_images

GRID = "image_grid_thw"
"""The input of Qwen-VL, one row per image, that TRL 0.24 does not know of."""

PASSED_ON = ("ref_chosen_logps", "ref_rejected_logps")
"""Columns that TRL adds when it computes the reference's log-probabilities beforehand."""


class ConcatenatedPairTrainer(DPOTrainer):
    """TRL 0.24's trainer, asking `pair_losses` for the loss, with images of any shape.

    A subclass has `objective`, None for TRL's own losses, `columns` and `pair_losses`; and for the ledger `take_keys`,
    `see` and `note_seen`.
    """

    averaged_losses = ("ipo",)
    """TRL's losses that take log-probabilities averaged over an answer's tokens."""

    def __init__(self, model: Any, ref_model: Any, args: Any, data_collator: Any, **kwargs: Any) -> None:
        self._batch: dict[str, Any] = {}
        self._phase = "train"
        adapted = _is_adapted(model) and ref_model is None and not kwargs.get("peft_config")
        keeps_adapter = self.objective is not None and adapted and args.ref_adapter_name is None
        if keeps_adapter:
            add_reference_adapter(model)
        super().__init__(model, ref_model, args, data_collator, **kwargs)
        if keeps_adapter:
            self.model_adapter_name, self.ref_adapter_name = model.active_adapter, REFERENCE_ADAPTER
        if data_collator is None:
            self.data_collator = ScoredPairs(self._collator(), self.columns)

    def _collator(self) -> Any:
        if not self.is_vision_model:
            return DataCollatorForPreference(pad_token_id=self.pad_token_id)
        # Cutting at the end is what keeps the images whole.
        self.truncation_mode = "keep_start"
        return PromptImagesCollator(self.processing_class, self.pad_token_id, self.max_length)

    @staticmethod
    def process_row(
        features: Mapping[str, Any],
        processing_class: Any,
        max_prompt_length: int | None = None,
        max_completion_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> dict[str, list[int]]:
        """Tokenize both answers of a row with images, ended as TRL ends them; the prompt waits for the collator.

        It is not cut, and the chat template has written its special tokens.
        """
        tokenizer = processing_class.tokenizer
        answers = {}
        for side in ("chosen", "rejected"):
            ids = [*tokenizer(features[side], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            answers[f"{side}_input_ids"] = ids[:max_completion_length]
        return answers

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        # TRL asks the configuration, which in transformers 4.57 answers for the language model of a Qwen-VL.
        self.is_vision_model = isinstance(processing_class, ProcessorMixin)
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _prepare_peft_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return with_warnings_issued(super()._prepare_peft_model(model, *args, **kwargs))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        ours = {*(self.columns or ()), "prompt", "images", KEY}
        self._signature_columns += sorted(ours.difference(self._signature_columns))

    def concatenated_forward(self, model: Any, batch: dict[str, Any], is_ref_model: bool = False) -> dict[str, Tensor]:
        """Return log-probabilities of both answers of every pair.

        Averaged over their tokens where the settings say so.
        """
        output = super().concatenated_forward(_with_grids(model, batch.get(GRID)), batch, is_ref_model)
        if self.objective is not None and self.objective.plan.averages_logps:
            for side in ("chosen", "rejected"):
                output[f"{side}_logps"] = output[f"{side}_logps"] / self._answer_lengths(batch, side)
        return output

    def get_batch_loss_metrics(
        self, model: Any, batch: dict[str, Any], train_eval: str = "train"
    ) -> tuple[Tensor, dict[str, float]]:
        """Return loss and metrics of one batch, with the objective's terms among them."""
        batch = dict(batch)
        keys = self.take_keys(batch)
        self._batch, self._phase = batch, train_eval
        self.see(**{name: batch[name] for name in SCORES if name in batch})
        loss, metrics = super().get_batch_loss_metrics(model, batch, train_eval)
        self.see(**{f"tokens_{side}": self._answer_lengths(batch, side) for side in ("chosen", "rejected")})
        self.note_seen(train_eval, keys)
        if self.objective is None:
            return loss, metrics
        prefix = "eval_" if train_eval == "eval" else ""
        return loss, metrics | {f"{prefix}{name}": value for name, value in self.logged_terms().items()}

    def dpo_loss(
        self,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        ref_chosen_logps: Tensor,
        ref_rejected_logps: Tensor,
        loss_type: str = "sigmoid",
        model_output: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses and rewards of shape (pairs,) for the batch set aside by `get_batch_loss_metrics`."""
        device = chosen_logps.device
        logps = PairLogps(chosen_logps, rejected_logps, ref_chosen_logps.to(device), ref_rejected_logps.to(device))
        self.see(**vars(logps))
        if self.objective is None:
            found = super().dpo_loss(
                chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, loss_type, model_output
            )
            self.see(loss=found[0] if self._is_the_loss_of_pairs(found[0], chosen_logps) else None)
            return found
        lengths = self._answer_lengths(self._batch, "chosen"), self._answer_lengths(self._batch, "rejected")
        return (
            self.pair_losses(logps, lengths, self.scores_in(self._batch), self._phase),
            self.beta * (logps.policy_chosen - logps.reference_chosen).detach(),
            self.beta * (logps.policy_rejected - logps.reference_rejected).detach(),
        )

    def _is_the_loss_of_pairs(self, losses: Tensor, logps: Tensor) -> bool:
        """Whether TRL trains on these losses as they are, one per pair: nothing is mixed, weighed or added."""
        plain = len(self.loss_type) == 1 and self.args.rpo_alpha is None and not self.use_weighting
        return plain and not self.aux_loss_enabled and losses.shape == logps.shape

    def _answer_lengths(self, batch: dict[str, Any], side: str) -> Tensor:
        """Scored tokens of each answer, (pairs,): those that TRL's cut at `max_length` leaves."""
        lengths = batch[f"{side}_attention_mask"].sum(1)
        if self.max_length is not None:
            prompt = 1 if self.truncation_mode == "keep_end" else batch["prompt_attention_mask"].sum(1)
            lengths = lengths.minimum((self.max_length - prompt) * torch.ones_like(lengths))
        return lengths.clamp(min=1)


@dataclass
class PromptImagesCollator:
    """Rows with images to TRL's batch: prompt and images through the model's own processor.

    Args:
        processor: the model's; a prompt holds its placeholder once per image.
        pad_token_id: fills up token ids.
        max_length: tokens of prompt and answer that are kept; a prompt must fit, for none of its images can be cut.
    """

    processor: Any
    pad_token_id: int
    max_length: int | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows of `prompt`, `images`, `chosen_input_ids`, `rejected_input_ids`."""
        images = [opened(image) for example in examples for image in example.get("images") or ()]
        inputs = self.processor(
            text=[example["prompt"] for example in examples],
            **({"images": images} if images else {}),
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        batch = {
            "prompt_input_ids": inputs.pop("input_ids"),
            "prompt_attention_mask": inputs.pop("attention_mask"),
        }
        # Told from the token ids again, once prompts and answers are joined.
        inputs.pop("mm_token_type_ids", None)
        longest = int(batch["prompt_attention_mask"].sum(1).max())
        if self.max_length is not None and longest >= self.max_length:
            raise UniDPOError(
                f"a prompt with its images has {longest} tokens, and max_length is {self.max_length}: raise it, set it "
                "to None, or make the images smaller"
            )
        for side in ("chosen", "rejected"):
            answers = [torch.tensor(example[f"{side}_input_ids"]) for example in examples]
            batch[f"{side}_input_ids"] = pad_sequence(answers, batch_first=True, padding_value=self.pad_token_id)
            batch[f"{side}_attention_mask"] = pad_sequence([torch.ones_like(a) for a in answers], batch_first=True)
        for name in PASSED_ON:
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return {**batch, **inputs}


class TypedSampler:
    """What TRL 0.24's GRPO trainer needs to ask a vision-language model; put before it."""

    def __init__(self, model: Any, **kwargs: Any) -> None:
        super().__init__(with_warnings_issued(model), **kwargs)  # type: ignore[call-arg]

    def _generate_single_turn(self, prompts: list[Any], images: list[Any] | None) -> tuple[Any, ...]:
        *sampled, inputs = super()._generate_single_turn(prompts, images)  # type: ignore[misc]
        # Told from the token ids again, once prompts and answers are joined.
        inputs.pop("mm_token_type_ids", None)
        return *sampled, inputs

    def _get_per_token_logps_and_entropies(self, model: Any, *arguments: Any, **inputs: Any) -> Any:
        typed = with_token_types(model)

        def seeing(input_ids: Tensor, **inputs: Any) -> Any:
            return typed(input_ids, **without_absent_images(inputs))

        return super()._get_per_token_logps_and_entropies(seeing, *arguments, **inputs)  # type: ignore[misc]


def with_warnings_issued(model: Any) -> Any:
    """Return `model` with the list of past warnings that TRL writes into; the models of transformers 5 have none."""
    if not hasattr(model, "warnings_issued"):
        model.warnings_issued = {}
    return model


def with_token_types(model: Any) -> Callable[..., Any]:
    """Return `model` as TRL calls it, told which tokens stand for images: Qwen-VL places them by that."""
    if "mm_token_type_ids" not in inspect.signature(unwrapped(model).forward).parameters:
        return model

    def forward(input_ids: Tensor, **inputs: Any) -> Any:
        token = torch.tensor(image_token_id(model), device=input_ids.device)
        return model(input_ids, mm_token_type_ids=(input_ids == token).int(), **inputs)

    return forward


def _is_adapted(model: Any) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _with_grids(model: Any, grid: Tensor | None) -> Callable[..., Any]:
    """`model` as TRL calls it, and beside TRL's inputs `grid`, (images, 3) patches in time, height and width."""
    if grid is None:
        return model
    typed = with_token_types(model)
    return lambda input_ids, **inputs: typed(input_ids, **inputs, **{GRID: torch.cat([grid, grid])})
