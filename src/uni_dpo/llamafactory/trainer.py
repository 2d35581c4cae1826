"""LlamaFactory's DPO trainer with the Uni-DPO objective in the one place where losses are made."""

from typing import Any

import torch
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.train.dpo.trainer import CustomDPOTrainer
from torch import Tensor

from uni_dpo.llamafactory.metrics import PairAverages
from uni_dpo.objective import PairLogps, uni_dpo_loss

AVERAGED_UPSTREAM = ("ipo", "orpo", "simpo")
METRICS = ("uni_dpo/w_qual", "uni_dpo/w_perf", "uni_dpo/nll_active", "uni_dpo/score_margin")


class UniDPOTrainer(CustomDPOTrainer):
    """Trains with `pref_loss: uni_dpo`; with any other loss it is LlamaFactory's trainer.

    `dpo_average_log_prob` is honoured for every loss where it is set.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        arguments = self.finetuning_args
        self.objective = arguments.uni_dpo_config() if arguments.uses_uni_dpo else None
        self.averages = PairAverages(METRICS)
        self._phase = "train"
        self._scores: list[tuple[float, float]] = []

    def concatenated_forward(self, model: Any, batch: Any, is_ref_model: bool = False) -> dict[str, Tensor]:
        """Log-probabilities of both answers of every pair, summed or averaged as the arguments say."""
        labels = batch["labels"]
        output = super().concatenated_forward(model, batch, is_ref_model)
        average = self.finetuning_args.dpo_average_log_prob
        averaged = self.loss_type in AVERAGED_UPSTREAM
        if average is None or average == averaged:
            return output
        lengths = (labels[:, 1:] != IGNORE_INDEX).sum(-1)
        for name, length in zip(("chosen_logps", "rejected_logps"), lengths.chunk(2), strict=True):
            output[name] = output[name] / length if average else output[name] * length
        return output

    def get_batch_loss_metrics(
        self, model: Any, batch: Any, train_eval: str = "train"
    ) -> tuple[Tensor, dict[str, Any]]:
        """Loss and metrics of one batch; its scores are set aside before the model sees it."""
        if self.objective is not None:
            self._phase = train_eval
            self._scores = batch.pop("scores")
        return super().get_batch_loss_metrics(model, batch, train_eval)

    def compute_preference_loss(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None,
        reference_rejected_logps: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses and rewards of shape (pairs,) for the scores set aside by `get_batch_loss_metrics`."""
        if self.objective is None or reference_chosen_logps is None or reference_rejected_logps is None:
            return super().compute_preference_loss(
                policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
            )
        logps = PairLogps(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        score_chosen, score_rejected = torch.tensor(self._scores, device=policy_chosen_logps.device).T
        loss = uni_dpo_loss(logps, score_chosen, score_rejected, self.objective)
        terms = (loss.quality_weight, loss.performance_weight, loss.nll_active, score_chosen - score_rejected)
        self.averages.add(self._phase, dict(zip(METRICS, terms, strict=True)))
        return (
            loss.losses,
            self.beta * (policy_chosen_logps - reference_chosen_logps).detach(),
            self.beta * (policy_rejected_logps - reference_rejected_logps).detach(),
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the objective's terms beside LlamaFactory's own metrics."""
        if self.objective is not None:
            phase, prefix = ("train", "") if "loss" in logs else ("eval", "eval_")
            averages = self.averages.take(phase, self.accelerator)
            logs.update({prefix + name: value for name, value in averages.items()})
        super().log(logs, *args, **kwargs)
