"""What users may set: TRL's DPO settings and those of Uni-DPO, named as in LlamaFactory."""

from dataclasses import dataclass, field
from typing import Any

from trl.trainer.dpo_config import DPOConfig

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.ledger import LedgerArguments
from uni_dpo.objective import ObjectiveArguments
from uni_dpo.objective import UniDPOConfig as Objective
from uni_dpo.settings.losses import LOSSES, UNI_DPO, averages_of, betas_of, read_trl_losses, written
from uni_dpo.settings.options import NotNegative, check_ranges
from uni_dpo.settings.sources import known_trl_losses
from uni_dpo.weighted_losses import LossPlan


@dataclass
class TRLUniDPOConfig(ObjectiveArguments, LedgerArguments, DPOConfig):
    """TRL's settings with the loss `uni_dpo`, which is the default, and what belongs to it.

    `None` stands for "not set" where the default depends on the loss.

    Attributes:
        losses: name → weight, where `objective` makes the loss; None for TRL's own.

    Raises:
        UniDPOError: a setting that means nothing with these losses, or one that is out of range.
    """

    loss_type: list[str] = field(
        default_factory=lambda: [UNI_DPO],
        metadata={
            "help": (
                "uni_dpo (arXiv 2506.10054), alone or weighed with others, as {uni_dpo: 1, sft: 0.1}; or any loss or "
                "mixture of losses of TRL's."
            )
        },
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "The weight of each loss in loss_type (default: 1 for each)."}
    )
    beta: float | None = field(
        default=None,
        metadata={"help": "β, the scale of the log-ratios (default: 2.0 for uni_dpo, 0.1 for every other loss)."},
    )
    average_log_prob: bool | None = field(
        default=None,
        metadata={
            "help": (
                "Average log-probabilities over an answer's tokens instead of summing them (default: true for uni_dpo, "
                "each loss's own way beside it; TRL's losses do not read it)."
            )
        },
    )
    simpo_gamma: NotNegative = field(default=0.5, metadata={"help": "γ of the loss simpo."})
    score_chosen_column: str = field(
        default="score_chosen", metadata={"help": "The dataset's column with the chosen answer's score."}
    )
    score_rejected_column: str = field(
        default="score_rejected", metadata={"help": "The dataset's column with the rejected answer's score."}
    )

    def __post_init__(self) -> None:
        self.losses = read_trl_losses(self.loss_type, self.loss_weights)
        if self.losses:
            self.loss_type, self.loss_weights = [written(self.losses)], None
        else:
            self._refuse_what_trl_does_not_know()
        super().__post_init__()
        check_ranges(self)
        self._betas = betas_of(self.losses or (), self.beta)
        if self.beta is None:
            self.beta = next(iter(self._betas.values()), DPOConfig.beta)
        if self.average_log_prob is None and self.losses == {UNI_DPO: 1.0}:
            self.average_log_prob = True
        if self.losses:
            self._refuse_what_is_not_in_the_objective()
            self.loss_plan()

    @property
    def uses_uni_dpo(self) -> bool:
        """Whether the Uni-DPO loss is among those that this run trains or evaluates with, so that it needs scores."""
        return self.losses is not None and UNI_DPO in self.losses

    @property
    def score_columns(self) -> tuple[str, str]:
        """The dataset's columns with the scores of chosen and rejected."""
        return self.score_chosen_column, self.score_rejected_column

    @property
    def averages_logps(self) -> bool:
        """Whether log-probabilities are averaged over an answer's tokens, rather than summed; the first loss's are."""
        return self.losses is not None and self.loss_plan().averages_logps

    def objective(self) -> Objective:
        """Return the objective's hyperparameters as they were set."""
        return self.objective_config(self._betas[UNI_DPO])

    def loss_plan(self) -> LossPlan:
        """Return the losses as they were set; for a run whose loss `objective` makes."""
        assert self.losses
        averages = averages_of(self.losses, self.average_log_prob)
        objective = self.objective() if self.uses_uni_dpo else None
        return LossPlan(self.losses, self._betas, averages, objective, self.simpo_gamma)

    def _refuse_what_trl_does_not_know(self) -> None:
        known = (*LOSSES, *known_trl_losses())
        for name in [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type:
            if name not in known:
                hint = did_you_mean(name, known) or f"; known: {', '.join(dict.fromkeys(known))}"
                raise UniDPOError(f"loss_type: {name!r} is no loss of TRL's or ours{hint}")

    def _refuse_what_is_not_in_the_objective(self) -> None:
        plain: dict[str, Any] = {
            "label_smoothing": 0.0,
            "use_weighting": False,
            "reference_free": False,
            "use_liger_loss": False,
            "f_divergence_type": DPOConfig.f_divergence_type,
        }
        loss = written(self.losses)
        for name, value in plain.items():
            if getattr(self, name, value) != value:  # one TRL has settings that another has not
                raise UniDPOError(
                    f"{name} is {getattr(self, name)!r}, but the loss {loss} only works with {value!r}: "
                    "set it to that, or choose another loss_type"
                )
