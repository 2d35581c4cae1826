"""TRL's DPO trainer with the Uni-DPO objective in the one place where losses are made."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from uni_dpo.errors import UniDPOError
from uni_dpo.objective import PairLogps, UniDPOLoss, uni_dpo_loss
from uni_dpo.trainer_mixins import (
    REFERENCE_ADAPTER,
    EndsTogether,
    KeepsAdapterAsReference,
    LoadsByPublishedNames,
    add_reference_adapter,
    refuse_not_a_number,
)
from uni_dpo.trl.arguments import UNI_DPO, TRLUniDPOConfig
from uni_dpo.trl.compatibility import with_token_types, with_warnings_issued
from uni_dpo.trl.data import SCORES, ScoredTextPairCollator, ScoredVisionPairCollator, check_scores, tokenize_answers

GRID = "image_grid_thw"
"""The input of Qwen-VL, one row per image, that TRL does not know of."""


class UniDPOTrainer(EndsTogether, KeepsAdapterAsReference, LoadsByPublishedNames, DPOTrainer):
    """Trains with the loss `uni_dpo`; with any other loss it is TRL's trainer.

    Vision data go through the model's own processor when a batch is made, so that every family whose processor
    takes texts and images together trains, also those whose images have no fixed size (Qwen-VL), with any number
    of images in a row. A prompt with images is never cut.

    Args:
        model, ref_model, train_dataset, …: as TRL's `DPOTrainer` takes them.
        args: a `TRLUniDPOConfig`; the published settings when None.

    Raises:
        UniDPOError: the loss is `uni_dpo`, and a dataset has no scores or some that are no numbers.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: DPOConfig | None = None,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = TRLUniDPOConfig(f"{name.split('/')[-1]}-Uni-DPO")
        self.objective = args.objective() if isinstance(args, TRLUniDPOConfig) and args.uses_uni_dpo else None
        self._columns = (args.score_chosen_column, args.score_rejected_column) if self.objective else None
        self._scores: tuple[Tensor, Tensor] | None = None
        self._terms: UniDPOLoss | None = None
        adapted = _is_adapted(model) and ref_model is None and not kwargs.get("peft_config")
        keeps_adapter = self.objective is not None and adapted and args.ref_adapter_name is None
        if keeps_adapter:
            add_reference_adapter(model)
        super().__init__(model, ref_model, args, data_collator, **kwargs)
        if keeps_adapter:
            self.model_adapter_name, self.ref_adapter_name = model.active_adapter, REFERENCE_ADAPTER
        if data_collator is None:
            self.data_collator = self._collator()

    process_row = staticmethod(tokenize_answers)

    def _collator(self) -> ScoredTextPairCollator | ScoredVisionPairCollator:
        if not self.is_vision_model:
            return ScoredTextPairCollator(self.pad_token_id, self._columns)
        # Cutting at the end is what keeps the images whole.
        self.truncation_mode = "keep_start"
        return ScoredVisionPairCollator(self.processing_class, self.pad_token_id, self._columns, self.max_length)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        # TRL asks the configuration, which in transformers 4.57 answers for the language model of a Qwen-VL.
        self.is_vision_model = isinstance(processing_class, ProcessorMixin)
        if self._columns is not None:
            check_scores(dataset, self._columns, dataset_name)
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _prepare_peft_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return with_warnings_issued(super()._prepare_peft_model(model, *args, **kwargs))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        ours = {*(self._columns or ()), "prompt", "images"}
        self._signature_columns += sorted(ours.difference(self._signature_columns))

    def concatenated_forward(self, model: Any, batch: dict[str, Any], is_ref_model: bool = False) -> dict[str, Tensor]:
        """Log-probabilities of both answers of every pair, averaged over their tokens where the settings say so."""
        output = super().concatenated_forward(_with_grids(model, batch.get(GRID)), batch, is_ref_model)
        if self.objective is not None and self.args.average_log_prob:
            for side in ("chosen", "rejected"):
                output[f"{side}_logps"] = output[f"{side}_logps"] / self._answer_lengths(batch, side)
        return output

    def get_batch_loss_metrics(
        self, model: Any, batch: dict[str, Any], train_eval: str = "train"
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and metrics of one batch, with the objective's terms among them."""
        if self.objective is None:
            return super().get_batch_loss_metrics(model, batch, train_eval)
        if any(name not in batch for name in SCORES):
            raise UniDPOError(f"the data collator has to put {' and '.join(SCORES)} into the batch")
        self._scores = batch[SCORES[0]], batch[SCORES[1]]
        loss, metrics = super().get_batch_loss_metrics(model, batch, train_eval)
        prefix = "eval_" if train_eval == "eval" else ""
        for name, term in self._logged_terms().items():
            gathered = self.accelerator.gather_for_metrics(term.float())
            metrics[f"{prefix}uni_dpo/{name}"] = gathered.mean().item()
        return loss, metrics

    def dpo_loss(
        self,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        ref_chosen_logps: Tensor,
        ref_rejected_logps: Tensor,
        loss_type: str = "sigmoid",
        model_output: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses and rewards of shape (pairs,) for the scores set aside by `get_batch_loss_metrics`."""
        if loss_type != UNI_DPO or self.objective is None or self._scores is None:
            return super().dpo_loss(
                chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, loss_type, model_output
            )
        device = chosen_logps.device
        logps = PairLogps(chosen_logps, rejected_logps, ref_chosen_logps.to(device), ref_rejected_logps.to(device))
        score_chosen, score_rejected = (scores.to(device) for scores in self._scores)
        self._terms = uni_dpo_loss(logps, score_chosen, score_rejected, self.objective)
        refuse_not_a_number(self._terms.losses.detach().mean(), self.state.global_step)
        return (
            self._terms.losses,
            self.beta * (logps.policy_chosen - logps.reference_chosen).detach(),
            self.beta * (logps.policy_rejected - logps.reference_rejected).detach(),
        )

    def _logged_terms(self) -> dict[str, Tensor]:
        assert self._terms is not None
        assert self._scores is not None
        return {
            "w_qual": self._terms.quality_weight,
            "w_perf": self._terms.performance_weight,
            "nll_active": self._terms.nll_active,
            "score_margin": self._scores[0] - self._scores[1],
        }

    def _answer_lengths(self, batch: dict[str, Any], side: str) -> Tensor:
        """Scored tokens of each answer, (pairs,): those that TRL's cut at `max_length` leaves."""
        lengths = batch[f"{side}_attention_mask"].sum(1)
        if self.max_length is not None:
            prompt = 1 if self.truncation_mode == "keep_end" else batch["prompt_attention_mask"].sum(1)
            lengths = lengths.minimum((self.max_length - prompt) * torch.ones_like(lengths))
        return lengths.clamp(min=1)


def _is_adapted(model: Any) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _with_grids(model: Any, grid: Tensor | None) -> Callable[..., Any]:
    """`model` as TRL calls it, and beside TRL's inputs those that tell Qwen-VL where its images are.

    Args:
        model: the policy or the reference, wrapped or not.
        grid: (images, 3) patches in time, height and width; None for a batch or a family without.
    """
    if grid is None:
        return model
    typed = with_token_types(model)
    return lambda input_ids, **inputs: typed(input_ids, **inputs, **{GRID: torch.cat([grid, grid])})
