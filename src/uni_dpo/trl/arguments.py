"""What users may set: TRL's DPO settings and those of Uni-DPO, named as in LlamaFactory."""

from dataclasses import dataclass, field
from typing import Any

from trl.trainer.dpo_config import DPOConfig

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.arguments import LedgerArguments
from uni_dpo.objective import ObjectiveArguments
from uni_dpo.objective import UniDPOConfig as Objective
from uni_dpo.settings.options import check_ranges

UNI_DPO = "uni_dpo"


@dataclass
class TRLUniDPOConfig(ObjectiveArguments, LedgerArguments, DPOConfig):
    """TRL's settings with the loss `uni_dpo`, which is the default, and what belongs to it.

    `None` stands for "not set" where the default depends on the loss.

    Raises:
        UniDPOError: a setting that means nothing with `uni_dpo`, or one that is out of range.
    """

    loss_type: list[str] = field(
        default_factory=lambda: [UNI_DPO],
        metadata={"help": "uni_dpo (arXiv 2506.10054), or any loss or mixture of losses of TRL's."},
    )
    beta: float | None = field(
        default=None,
        metadata={"help": "β, the scale of the log-ratios (default: 2.0 for uni_dpo, 0.1 for every other loss)."},
    )
    average_log_prob: bool = field(
        default=True,
        metadata={
            "help": "Average log-probabilities over an answer's tokens instead of summing them; for uni_dpo only."
        },
    )
    score_chosen_column: str = field(
        default="score_chosen", metadata={"help": "The dataset's column with the chosen answer's score."}
    )
    score_rejected_column: str = field(
        default="score_rejected", metadata={"help": "The dataset's column with the rejected answer's score."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self)
        if self.beta is None:
            self.beta = Objective.beta if self.uses_uni_dpo else DPOConfig.beta
        if self.uses_uni_dpo:
            self._refuse_what_uni_dpo_cannot_use()
            self.objective()

    @property
    def uses_uni_dpo(self) -> bool:
        """Whether this run trains or evaluates with the Uni-DPO loss."""
        return UNI_DPO in ([self.loss_type] if isinstance(self.loss_type, str) else self.loss_type)

    @property
    def averages_logps(self) -> bool:
        """Whether the loss takes log-probabilities averaged over an answer's tokens."""
        return self.uses_uni_dpo and self.average_log_prob

    def objective(self) -> Objective:
        """Return the objective's hyperparameters as they were set."""
        return self.objective_config(self.beta)

    def _refuse_what_uni_dpo_cannot_use(self) -> None:
        plain: dict[str, Any] = {
            "label_smoothing": 0.0,
            "use_weighting": False,
            "reference_free": False,
            "use_liger_loss": False,
            "f_divergence_type": DPOConfig.f_divergence_type,
        }
        if self.loss_type not in (UNI_DPO, [UNI_DPO]):
            raise UniDPOError(f"loss_type is {self.loss_type!r}: uni_dpo mixes with no other loss, name it alone")
        for name, value in plain.items():
            if getattr(self, name, value) != value:  # one TRL has settings that another has not
                raise UniDPOError(
                    f"{name} is {getattr(self, name)!r}, but the loss uni_dpo only works with {value!r}: "
                    "set it to that, or choose another loss_type"
                )
