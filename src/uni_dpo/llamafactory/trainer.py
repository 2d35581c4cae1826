"""LlamaFactory's DPO trainer with the Uni-DPO objective in the one place where losses are made."""

from typing import Any

from llamafactory.extras import logging
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.dpo.trainer import CustomDPOTrainer
from torch import Tensor

from uni_dpo.llamafactory.arguments import AVERAGED_UPSTREAM
from uni_dpo.llamafactory.data import take_scores
from uni_dpo.llamafactory.metrics import PairAverages
from uni_dpo.llamafactory.pair_forward import PairForward
from uni_dpo.llamafactory.question_sampler import QuestionSampler
from uni_dpo.llamafactory.reference_cache import FillWhenWrapped, ReferenceCollator, take_reference
from uni_dpo.llamafactory.run_context import current_run
from uni_dpo.objective import PairLogps, uni_dpo_loss
from uni_dpo.trainer_mixins import (
    EndsTogether,
    KeepsAdapterAsReference,
    LoadsByPublishedNames,
    add_reference_adapter,
    names_not_loaded,
    reference_adapter,
    refuse_not_a_number,
)

logger = logging.get_logger(f"llamafactory.{__name__}")  # below LlamaFactory's own, which shows what is INFO

METRICS = ("uni_dpo/w_qual", "uni_dpo/w_perf", "uni_dpo/nll_active", "uni_dpo/score_margin")


class LlamaFactoryUniDPOTrainer(EndsTogether, KeepsAdapterAsReference, LoadsByPublishedNames, CustomDPOTrainer):
    """Trains with `pref_loss: uni_dpo`; with any other loss it is LlamaFactory's trainer.

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
        self.objective = arguments.uni_dpo_config() if arguments.uses_uni_dpo else None
        self.averages = PairAverages(METRICS)
        self._phase = "train"
        self._scores: tuple[Tensor, Tensor] | None = None
        self._reference: tuple[Tensor, Tensor] | None = None
        self.pair_forward = None
        if arguments.shares_prefix:
            self.pair_forward = PairForward.choose(
                self.model, self.ref_model, arguments.pair_attention, run.image_store
            )
        if self.pair_forward is not None:
            self.data_collator = self.pair_forward.collator(self.data_collator)
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
        return QuestionSampler(self.train_dataset, seed=self.args.data_seed or self.args.seed)

    def concatenated_forward(self, model: Any, batch: Any, is_ref_model: bool = False) -> dict[str, Tensor]:
        """Log-probabilities of both answers of every pair, summed or averaged as the arguments say."""
        averaged_upstream = self.loss_type in AVERAGED_UPSTREAM
        average = self.finetuning_args.averages_logps
        if self.pair_forward is not None:
            ld_alpha = None if is_ref_model else self.ld_alpha
            return self.pair_forward(model, batch, is_reference=is_ref_model, average=average, ld_alpha=ld_alpha)
        labels = batch["labels"]
        output = super().concatenated_forward(model, batch, is_ref_model)
        if average == averaged_upstream:
            return output
        lengths = (labels[:, 1:] != IGNORE_INDEX).sum(-1)
        for name, length in zip(("chosen_logps", "rejected_logps"), lengths.chunk(2), strict=True):
            output[name] = output[name] / length if average else output[name] * length
        return output

    def get_batch_loss_metrics(
        self, model: Any, batch: Any, train_eval: str = "train"
    ) -> tuple[Tensor, dict[str, Any]]:
        """Loss and metrics of one batch; its scores are set aside before the model sees it."""
        self._reference = take_reference(batch)
        if self.objective is not None:
            self._phase = train_eval
            self._scores = take_scores(batch)
        return super().get_batch_loss_metrics(model, batch, train_eval)

    def compute_reference_log_probs(self, model: Any, batch: Any) -> tuple[Tensor | None, Tensor | None]:
        """What the batch brought from the reference cache, or else what the reference model makes of it now."""
        if self._reference is not None or not self._starts_from_adapter:
            return self._reference or super().compute_reference_log_probs(model, batch)
        with reference_adapter(self.accelerator.unwrap_model(model)):
            output = self.concatenated_forward(model, batch, is_ref_model=True)
        return output["chosen_logps"], output["rejected_logps"]

    def compute_preference_loss(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses and rewards of shape (pairs,) for the scores set aside by `get_batch_loss_metrics`."""
        if self.objective is None or self._scores is None:
            return super().compute_preference_loss(
                policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
            )
        logps = PairLogps(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        score_chosen, score_rejected = self._scores
        loss = uni_dpo_loss(logps, score_chosen, score_rejected, self.objective)
        refuse_not_a_number(loss.losses.detach().mean(), self.state.global_step, **_detached(logps))
        terms = (loss.quality_weight, loss.performance_weight, loss.nll_active, score_chosen - score_rejected)
        self.averages.add(self._phase, dict(zip(METRICS, terms, strict=True)))
        return (
            loss.losses,
            self.beta * (policy_chosen_logps - reference_chosen_logps).detach(),
            self.beta * (policy_rejected_logps - reference_rejected_logps).detach(),
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


def _detached(logps: PairLogps) -> dict[str, Tensor]:
    return {f"the log-probability of {name}": part.detach() for name, part in vars(logps).items()}
