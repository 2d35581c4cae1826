"""LlamaFactory's DPO trainer with the Uni-DPO objective in the one place where losses are made."""

from typing import Any

import torch
from llamafactory.extras import logging
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.dpo.trainer import CustomDPOTrainer
from torch import Tensor
from torch.utils.data import SequentialSampler

from uni_dpo.ledger.columns import NUMBERS
from uni_dpo.llamafactory.arguments import AVERAGED_UPSTREAM
from uni_dpo.llamafactory.data import CARRIED, take_keys
from uni_dpo.llamafactory.pair_forward import PairForward
from uni_dpo.llamafactory.question_pairs import QuestionSampler, take_pair
from uni_dpo.llamafactory.reference_cache import LOGPS, FillWhenWrapped, ReferenceCollator
from uni_dpo.llamafactory.run_context import current_run, open_ledger, progress_lines
from uni_dpo.monitor.pairs import Seen, WatchesPairs
from uni_dpo.monitor.progress import PairAverages
from uni_dpo.objective import PairLogps
from uni_dpo.trainer_mixins import (
    EndsTogether,
    KeepsAdapterAsReference,
    LoadsByPublishedNames,
    add_reference_adapter,
    names_not_loaded,
    reference_adapter,
    refuse_not_a_number,
)
from uni_dpo.weighted_losses import RemembersLosses, WeightedLosses, weights_among

logger = logging.get_logger(f"llamafactory.{__name__}")  # below LlamaFactory's own, which shows what is INFO


class LlamaFactoryUniDPOTrainer(
    WatchesPairs, EndsTogether, KeepsAdapterAsReference, RemembersLosses, LoadsByPublishedNames, CustomDPOTrainer
):
    """Trains with `pref_loss: uni_dpo` or weighted losses; with any other loss it is LlamaFactory's trainer.

    `dpo_average_log_prob` is honoured for every loss where it is set.
    """

    ref_model: Any
    data_collator: Any

    def __init__(self, model: Any, ref_model: Any, **kwargs: Any) -> None:
        run = current_run()
        self._starts_from_adapter = run.starts_from_adapter and ref_model is None
        if self._starts_from_adapter:
            add_reference_adapter(model)
        super().__init__(model=model, ref_model=ref_model, **kwargs)
        arguments = self.finetuning_args
        if arguments.is_ours:
            self.objective = WeightedLosses(arguments.loss_plan(), lambda value: self.accelerator.reduce(value, "mean"))
        self.averages = PairAverages(self.objective.metrics if self.objective else ())
        self._phase = "train"
        self._scores: tuple[Tensor, Tensor] | None = None
        self._seen: Seen = {}
        self._reference: tuple[Tensor, Tensor] | None = None
        self.pair_forward = None
        if arguments.shares_prefix:
            self.pair_forward = PairForward.choose(
                self.model, self.ref_model, arguments.pair_attention, run.image_store
            )
        if self.pair_forward is not None:
            self.data_collator = self.pair_forward.collator(self.data_collator)
        if self.objective is not None:
            self.show_lines(progress_lines())
        evidence = run.record.get("evidence", {})
        self.watch(arguments, evidence, open_ledger(self) if run.keeps_ledger else None, logger)
        cache = run.reference_cache
        if cache is not None:
            self.data_collator = ReferenceCollator(self.data_collator, cache)
            if self.ref_model is None:
                self.add_callback(FillWhenWrapped(cache, self))
            else:
                cache.fill(self)
                self.ref_model = None

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Draw question by question where it is asked for, else as LlamaFactory does."""
        if not self.finetuning_args.group_by_question:
            return super()._get_train_sampler(*args, **kwargs)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return QuestionSampler(
            self.train_dataset,
            seed=self.args.data_seed or self.args.seed,
            like_lengths_of=step if self._groups_by_length() else None,
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Pairs have no `input_ids` by which they could be grouped; evaluation takes them in the order of the file."""
        return SequentialSampler(eval_dataset) if self._groups_by_length() else super()._get_eval_sampler(eval_dataset)

    def _groups_by_length(self) -> bool:
        """Whether questions of like length are to meet; transformers 4 and 5 name the setting so."""
        wanted = getattr(self.args, "group_by_length", False)
        wanted |= getattr(self.args, "train_sampling_strategy", "") == "group_by_length"
        return bool(wanted and self.finetuning_args.group_by_question)

    def concatenated_forward(self, model: Any, batch: Any, is_ref_model: bool = False) -> dict[str, Tensor]:
        """Return log-probabilities of both answers of every pair, summed or averaged as the arguments say."""
        average = self.finetuning_args.averages_logps
        if self.pair_forward is not None:
            ld_alpha = None if is_ref_model else self.ld_alpha
            output = self.pair_forward(model, batch, is_reference=is_ref_model, average=average, ld_alpha=ld_alpha)
            chosen, rejected = output["lengths"].chunk(2)
        else:
            chosen, rejected = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(-1).chunk(2)
            output = super().concatenated_forward(model, batch, is_ref_model)
            if average != (self.loss_type in AVERAGED_UPSTREAM):
                for name, length in (("chosen_logps", chosen), ("rejected_logps", rejected)):
                    output[name] = output[name] / length if average else output[name] * length
        if not is_ref_model:
            self._lengths = chosen, rejected
            self._seen |= {"tokens_chosen": chosen, "tokens_rejected": rejected}
        return output

    @staticmethod
    def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch without what the trainer would take out of it."""
        return {name: value for name, value in batch.items() if name not in CARRIED}

    def get_batch_loss_metrics(
        self, model: Any, batch: Any, train_eval: str = "train"
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return loss and metrics of one batch; what it carries is set aside before the model sees it."""
        self._reference = take_pair(batch, LOGPS)
        self._phase = train_eval
        self._scores = take_pair(batch, "scores")
        self._seen = {}
        keys = take_keys(batch)
        result = super().get_batch_loss_metrics(model, batch, train_eval)
        # An auxiliary loss has been added to those of the pairs by now.
        scores = zip(("score_chosen", "score_rejected"), self._scores or (), strict=False)
        self.note_pairs(train_eval, keys, {**self._seen, **dict(scores)})
        return result

    def compute_reference_log_probs(self, model: Any, batch: Any) -> tuple[Tensor | None, Tensor | None]:
        """Return what the batch brought from the reference cache, or else what the reference model makes of it now."""
        if self._reference is not None or not self._starts_from_adapter:
            return self._reference or super().compute_reference_log_probs(model, batch)
        with reference_adapter(self.accelerator.unwrap_model(model)):
            output = self.concatenated_forward(model, batch, is_ref_model=True)
        return output["chosen_logps"], output["rejected_logps"]

    def compute_preference_loss(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None,
        reference_rejected_logps: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses and rewards of shape (pairs,) for the scores set aside by `get_batch_loss_metrics`."""
        seen = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        self._seen |= zip(NUMBERS[:4], seen, strict=True)
        if self.objective is None:
            result = super().compute_preference_loss(*seen)
            self._seen["loss"] = result[0].detach() if result[0].shape == policy_chosen_logps.shape else None
            return result
        logps = PairLogps(*(torch.zeros_like(policy_chosen_logps) if part is None else part for part in seen))
        losses, terms = self.objective(logps, self._lengths, self._scores, trains=self._phase == "train")
        made_of = {f"the log-probability of {name}": part.detach() for name, part in vars(logps).items()}
        refuse_not_a_number(losses.detach().mean(), self.state.global_step, **made_of)
        self.averages.add(self._phase, terms)
        self._seen |= {"loss": losses.detach(), **weights_among(terms)}
        return (
            losses,
            self.beta * (logps.policy_chosen - logps.reference_chosen).detach(),
            self.beta * (logps.policy_rejected - logps.reference_rejected).detach(),
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Other losses resume as they do in LlamaFactory."""
        if self.objective is None:
            self._say_what_is_not_loaded(resume_from_checkpoint)
            CustomDPOTrainer._load_from_checkpoint(self, resume_from_checkpoint, model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Other losses end as they do in LlamaFactory."""
        if self.objective is None:
            self._say_what_is_not_loaded(self.state.best_model_checkpoint)
            CustomDPOTrainer._load_best_model(self)
        else:
            super()._load_best_model()

    def _say_what_is_not_loaded(self, checkpoint: str | None) -> None:
        whole = self._whole_model()
        missing, known = names_not_loaded(whole, checkpoint) if whole is not None and checkpoint else (0, 0)
        if missing:
            logger.warning_rank0(
                f"pref_loss: {self.loss_type}: transformers loads {known - missing} of {known} tensors of "
                f"{checkpoint}, because it saved the others under other names; the model is a mixture. "
                "Use that folder as it is."
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the objective's terms beside LlamaFactory's own metrics."""
        if self.objective is not None:
            phase, prefix = ("train", "") if "loss" in logs else ("eval", "eval_")
            averages = self.averages.take(phase, self.accelerator)
            logs.update({prefix + name: value for name, value in averages.items()})
        super().log(logs, *args, **kwargs)
