"""The losses of `pref_loss` on a batch, each as it would be alone, and their weighted sum."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uni_dpo.llamafactory.arguments import UniDPOFinetuningArguments
from uni_dpo.objective import PairLogps, named_loss, uni_dpo_loss
from uni_dpo.settings.losses import UNI_DPO
from uni_dpo.storage.writing import write_text

METRICS = ("uni_dpo/w_qual", "uni_dpo/w_perf", "uni_dpo/nll_active", "uni_dpo/score_margin")
SHIFT = "bco_shift.json"
"""In a checkpoint's folder: the mean reward that BCO compares with, and of how many batches it is."""


@dataclass(frozen=True)
class WeightedLoss:
    """The weighted sum for each pair, (pairs,), and by metric what it is made of, (pairs,) each without gradient."""

    losses: Tensor
    terms: dict[str, Tensor]


class WeightedLosses:
    """Makes the loss of a run whose loss is ours.

    Args:
        arguments: the run's; `is_ours`.
        accelerator: the trainer's, for what is averaged over processes.
    """

    def __init__(self, arguments: UniDPOFinetuningArguments, accelerator: Any) -> None:
        self._arguments = arguments
        self._accelerator = accelerator
        self._objective = arguments.uni_dpo_config() if arguments.uses_uni_dpo else None
        self._shift, self._batches = 0.0, 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `WeightedLoss.terms` holds: Uni-DPO's terms, and but for Uni-DPO alone each loss before its weight."""
        if self._arguments.pref_loss == UNI_DPO:
            return METRICS
        parts = tuple(f"loss/{name}" for name in self._arguments.loss_weights)
        return (METRICS if self._objective else ()) + parts

    def __call__(
        self,
        logps: PairLogps,
        lengths: tuple[Tensor, Tensor],
        scores: tuple[Tensor, Tensor] | None,
        *,
        trains: bool,
    ) -> WeightedLoss:
        """Return the weighted sum.

        Args:
            logps: as `averages_logps` says; zeros for the reference where there is none.
            lengths: scored tokens of the chosen and of the rejected answers, (pairs,) each.
            scores: of the chosen and of the rejected answers, (pairs,) each; None where no loss needs them.
            trains: whether the batch is trained on, so that it moves BCO's mean.
        """
        total: Tensor | None = None
        terms: dict[str, Tensor] = {}
        for name, weight in self._arguments.loss_weights.items():
            given = self._as_alone(name, logps, lengths)
            if name == UNI_DPO:
                losses = self._uni_dpo(given, scores, terms)
            else:
                shift = self._moved_shift(given, trains) if name == "bco_pair" else 0.0
                beta, gamma = self._arguments.betas[name], self._arguments.simpo_gamma
                losses = named_loss(name, given, beta, simpo_gamma=gamma, bco_shift=shift)
            terms[f"loss/{name}"] = losses.detach()
            total = weight * losses if total is None else total + weight * losses
        assert total is not None
        return WeightedLoss(total, {name: terms[name] for name in self.metrics})

    def _uni_dpo(self, logps: PairLogps, scores: tuple[Tensor, Tensor] | None, terms: dict[str, Tensor]) -> Tensor:
        assert scores is not None
        assert self._objective is not None
        loss = uni_dpo_loss(logps, *scores, self._objective)
        found = (loss.quality_weight, loss.performance_weight, loss.nll_active, scores[0] - scores[1])
        terms |= zip(METRICS, found, strict=True)
        return loss.losses

    def _as_alone(self, name: str, logps: PairLogps, lengths: tuple[Tensor, Tensor]) -> PairLogps:
        """The log-probabilities summed or averaged as a loss takes them."""
        average = self._arguments.averages_for(name)
        if average == self._arguments.averages_logps:
            return logps
        chosen, rejected = (1 / length if average else length for length in lengths)
        return replace(
            logps,
            policy_chosen=logps.policy_chosen * chosen,
            policy_rejected=logps.policy_rejected * rejected,
            reference_chosen=logps.reference_chosen * chosen,
            reference_rejected=logps.reference_rejected * rejected,
        )

    def _moved_shift(self, logps: PairLogps, trains: bool) -> float:
        """BCO's δ: the mean reward of all batches trained on so far, this one among them; of this one before any."""
        gains = (logps.policy_chosen - logps.reference_chosen, logps.policy_rejected - logps.reference_rejected)
        mean = self._arguments.betas["bco_pair"] * torch.cat(gains).detach().mean()
        found = float(self._accelerator.reduce(mean, "mean"))
        if trains:
            self._batches += 1
            self._shift += (found - self._shift) / self._batches
        return self._shift if self._batches else found

    def save(self, folder: Path) -> None:
        """Keep BCO's mean beside a checkpoint, where it is one of the losses."""
        if self._batches:
            write_text(folder / SHIFT, json.dumps({"shift": self._shift, "batches": self._batches}) + "\n")

    def load(self, folder: Path) -> None:
        """Take up BCO's mean from a checkpoint."""
        if (folder / SHIFT).is_file():
            kept = json.loads((folder / SHIFT).read_text(encoding="utf-8"))
            self._shift, self._batches = float(kept["shift"]), int(kept["batches"])
