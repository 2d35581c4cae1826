"""Several losses on a batch, each as it would be alone, and their weighted sum; the same for every trainer of pairs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from uni_dpo.objective import PairLogps, UniDPOConfig, named_loss, uni_dpo_loss
from uni_dpo.settings.losses import UNI_DPO
from uni_dpo.storage import read_json
from uni_dpo.storage.writing import write_text

METRICS = ("uni_dpo/w_qual", "uni_dpo/w_perf", "uni_dpo/nll_active", "uni_dpo/score_margin")
SHIFT = "bco_shift.json"
"""In a checkpoint's folder: the mean reward that BCO compares with, and of how many batches it is."""


def weights_among(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of Uni-DPO's terms that the ledger keeps, by its names for them."""
    return {name.removeprefix("uni_dpo/"): terms[name] for name in METRICS[:3] if name in terms}


@dataclass(frozen=True)
class LossPlan:
    """What the loss of a run is made of.

    Attributes:
        weights: name → weight above 0; what is logged of log-probabilities is the first one's.
        betas: name → β.
        averages: name → whether it takes log-probabilities averaged over an answer's tokens, rather than summed.
        objective: Uni-DPO's hyperparameters, where it is among them.
        simpo_gamma: γ of SimPO.
    """

    weights: Mapping[str, float]
    betas: Mapping[str, float]
    averages: Mapping[str, bool]
    objective: UniDPOConfig | None
    simpo_gamma: float

    @property
    def averages_logps(self) -> bool:
        """Whether the log-probabilities that the losses are given are averaged: the first loss's are."""
        return next(iter(self.averages.values()))


class WeightedLosses:
    """Makes the loss of a run whose loss is ours.

    Args:
        plan: the losses.
        mean: a number's mean over all processes.
    """

    def __init__(self, plan: LossPlan, mean: Callable[[Tensor], Tensor]) -> None:
        self.plan = plan
        self._mean = mean
        self._shift, self._batches = 0.0, 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is logged: Uni-DPO's terms, and but for Uni-DPO alone each loss before its weight."""
        if self.plan.weights == {UNI_DPO: 1.0}:
            return METRICS
        parts = tuple(f"loss/{name}" for name in self.plan.weights)
        return (METRICS if self.plan.objective else ()) + parts

    def __call__(
        self,
        logps: PairLogps,
        lengths: tuple[Tensor, Tensor],
        scores: tuple[Tensor, Tensor] | None,
        *,
        trains: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum for each pair, (pairs,), and by metric what it is made of, (pairs,) each.

        Args:
            logps: as `LossPlan.averages_logps` says; zeros for the reference where there is none.
            lengths: scored tokens of the chosen and of the rejected answers, (pairs,) each.
            scores: of the chosen and of the rejected answers, (pairs,) each; None where no loss needs them.
            trains: whether the batch is trained on, so that it moves BCO's mean.
        """
        total: Tensor | None = None
        terms: dict[str, Tensor] = {}
        for name, weight in self.plan.weights.items():
            given = self._as_alone(name, logps, lengths)
            if name == UNI_DPO:
                losses = self._uni_dpo(given, scores, terms)
            else:
                shift = self._moved_shift(given, trains) if name == "bco_pair" else 0.0
                beta, gamma = self.plan.betas[name], self.plan.simpo_gamma
                losses = named_loss(name, given, beta, simpo_gamma=gamma, bco_shift=shift)
            terms[f"loss/{name}"] = losses.detach()
            total = weight * losses if total is None else total + weight * losses
        assert total is not None
        return total, {name: terms[name] for name in self.metrics}

    def _uni_dpo(self, logps: PairLogps, scores: tuple[Tensor, Tensor] | None, terms: dict[str, Tensor]) -> Tensor:
        assert scores is not None
        assert self.plan.objective is not None
        loss = uni_dpo_loss(logps, *scores, self.plan.objective)
        found = (loss.quality_weight, loss.performance_weight, loss.nll_active, scores[0] - scores[1])
        terms |= zip(METRICS, found, strict=True)
        return loss.losses

    def _as_alone(self, name: str, logps: PairLogps, lengths: tuple[Tensor, Tensor]) -> PairLogps:
        """The log-probabilities summed or averaged as a loss takes them."""
        average = self.plan.averages[name]
        if average == self.plan.averages_logps:
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
        found = float(self._mean(self.plan.betas["bco_pair"] * torch.cat(gains).detach().mean()))
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
        if kept := read_json(folder / SHIFT):
            self._shift, self._batches = float(kept["shift"]), int(kept["batches"])


class RemembersLosses(Trainer):
    """A trainer whose checkpoints hold what its losses remember."""

    objective: WeightedLosses | None = None
    """The loss where it is ours; None for a library's own."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save, with what a loss remembers."""
        super()._save_checkpoint(*args, **kwargs)
        if self.objective is not None and self.args.should_save:
            self.objective.save(Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on with what a loss remembers, as with the optimizer."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.objective is not None and checkpoint:
            self.objective.load(Path(checkpoint))
