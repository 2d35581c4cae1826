"""What users may set: LlamaFactory's finetuning arguments and those of Uni-DPO."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from llamafactory.extras.misc import is_env_enabled
from llamafactory.hparams.finetuning_args import FinetuningArguments

from uni_dpo.data.ranking import PairChoice, Pairing
from uni_dpo.errors import UniDPOError
from uni_dpo.ledger import LedgerArguments
from uni_dpo.objective import ObjectiveArguments, UniDPOConfig
from uni_dpo.settings.losses import LOSSES, UNI_DPO, LossFacts, averages_of, betas_of, read_losses, written
from uni_dpo.settings.options import NotNegative, check_ranges
from uni_dpo.weighted_losses import LossPlan

AVERAGED_UPSTREAM = ("ipo", "orpo", "simpo")
STOCK_LOSSES = get_args(FinetuningArguments.__dataclass_fields__["pref_loss"].type)
PrefLoss: Any = str
"""A loss's name or several with weights, also as a mapping; `settings.losses` reads it."""


@dataclass
class UniDPOFinetuningArguments(ObjectiveArguments, LedgerArguments, FinetuningArguments):
    """LlamaFactory's finetuning arguments with `pref_loss: uni_dpo` and what belongs to it.

    `None` stands for "not set" where the default depends on the loss.

    Raises:
        UniDPOError: an argument that means nothing with `uni_dpo` is set, or one is out of range.
    """

    pref_loss: PrefLoss = field(
        default="sigmoid",
        metadata={
            "help": (
                "The preference loss, or several with weights, as {uni_dpo: 1, sft: 0.1}; uni_dpo is arXiv 2506.10054."
            )
        },
    )
    pref_beta: float | None = field(
        default=None,
        metadata={"help": "β, the scale of the log-ratios (default: 2.0 for uni_dpo, 0.1 for every other loss)."},
    )
    dpo_average_log_prob: bool | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": True,
            "help": (
                "Average log-probabilities over an answer's tokens instead of summing them "
                "(default: true for uni_dpo, LlamaFactory's own way for every other loss)."
            ),
        },
    )
    pair_forward: Literal["auto", "shared_prefix", "ordinary"] = field(
        default="auto",
        metadata={
            "help": (
                "How pairs go through the model: shared_prefix runs the pairs of a question as one sequence, prompt, "
                "images and each different answer once, where that costs less; ordinary is LlamaFactory's two "
                "sequences per pair; auto shares for uni_dpo and losses with weights, and leaves others as they are."
            )
        },
    )
    pair_attention: Literal["sdpa", "flex_attention"] = field(
        default="sdpa",
        metadata={
            "help": (
                "What attends within a shared sequence: sdpa takes the prompt by a causal kernel and the answers with "
                "a mask, also where flash_attn is fa2 (eager code where it is disabled); flex_attention compiles "
                "kernels that skip what is masked, on a GPU only."
            )
        },
    )
    group_by_question: bool = field(
        default=False,
        metadata={
            "help": (
                "Draw the pairs of a question one after the other, so that they meet in a batch, where its prompt, "
                "images and different answers run once; questions come in random order."
            )
        },
    )
    uni_dpo_pairs: Pairing = field(
        default="all",
        metadata={
            "help": (
                "Which pairs of ranked answers count: every two of a question, each with the next, or the best with "
                "the worst. Answers of equal scores make no pair."
            )
        },
    )
    uni_dpo_min_gap: NotNegative = field(
        default=0.0, metadata={"help": "The least difference of two scores that makes a pair of ranked answers."}
    )
    precompute_ref_log_probs: bool = field(
        default=False,
        metadata={"help": "Compute the reference's log-probabilities before training and keep them on disk."},
    )
    ref_cache_dir: str = field(
        default="~/.cache/uni_dpo/reference",
        metadata={"help": "Where precomputed reference log-probabilities are kept, for any number of runs."},
    )
    keep_image_features: bool = field(
        default=False,
        metadata={"help": "Keep what the frozen vision tower makes of every image on disk, for later epochs and runs."},
    )
    image_features_dir: str = field(
        default="~/.cache/uni_dpo/image_features",
        metadata={"help": "Where image features are kept, for any number of runs."},
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        self.loss_weights = read_losses(self.pref_loss, STOCK_LOSSES)
        self.pref_loss = written(self.pref_loss, STOCK_LOSSES)
        known = {name: LOSSES.get(name, LossFacts()) for name in self.loss_weights}
        self.betas = betas_of(self.loss_weights, self.pref_beta)
        self.pref_beta = next(iter(self.betas.values()))
        if self.is_ours:
            self._refuse_what_is_not_in_the_objective()
        if self.uses_uni_dpo:
            if self.pref_loss == UNI_DPO and self.dpo_average_log_prob is None:
                self.dpo_average_log_prob = True
            self.uni_dpo_config()
        if self.keep_image_features:
            self._refuse_what_changes_image_features()
        super().__post_init__()
        self.use_ref_model = self.stage == "dpo" and any(facts.compares for facts in known.values())

    @property
    def uses_uni_dpo(self) -> bool:
        """Whether the Uni-DPO loss is among those that this run trains or evaluates with, so that it needs scores."""
        return self.stage == "dpo" and UNI_DPO in self.loss_weights

    @property
    def is_ours(self) -> bool:
        """Whether `objective` makes the loss of this run, rather than LlamaFactory."""
        return self.stage == "dpo" and self.pref_loss not in STOCK_LOSSES

    @property
    def shares_prefix(self) -> bool:
        """Whether a pair is to be one sequence, as far as the model allows."""
        asked = self.pair_forward == "shared_prefix" or (self.pair_forward == "auto" and self.is_ours)
        return self.stage == "dpo" and asked

    @property
    def averages_logps(self) -> bool:
        """Whether log-probabilities are averaged over an answer's tokens, rather than summed; the first loss's are."""
        return averages_of(self.loss_weights, self.dpo_average_log_prob)[next(iter(self.loss_weights))]

    @property
    def pair_choice(self) -> PairChoice:
        """Which pairs of ranked answers count."""
        return PairChoice(self.uni_dpo_pairs, self.uni_dpo_min_gap)

    def uni_dpo_config(self) -> UniDPOConfig:
        """Return the objective's hyperparameters as they were set."""
        return self.objective_config(self.betas[UNI_DPO])

    def loss_plan(self) -> LossPlan:
        """Return the losses as they were set; for a run whose loss `is_ours`."""
        averages = averages_of(self.loss_weights, self.dpo_average_log_prob)
        objective = self.uni_dpo_config() if self.uses_uni_dpo else None
        return LossPlan(self.loss_weights, self.betas, averages, objective, self.simpo_gamma)

    def _refuse_what_changes_image_features(self) -> None:
        if not self.shares_prefix:
            raise UniDPOError(
                "keep_image_features needs one sequence per pair, that is stage: dpo with pair_forward: shared_prefix "
                f"(here stage: {self.stage}, pair_forward: {self.pair_forward}, pref_loss: {self.pref_loss}): "
                "set it, or leave keep_image_features out"
            )
        for name in ("freeze_vision_tower", "freeze_multi_modal_projector"):
            if not getattr(self, name):
                raise UniDPOError(
                    f"keep_image_features: with {name}: false, training changes the features of an image: "
                    "freeze it, or leave keep_image_features out"
                )

    def _refuse_what_is_not_in_the_objective(self) -> None:
        if self.dpo_label_smoothing > 0:
            weighs = "weighs pairs by their scores instead" if self.pref_loss == UNI_DPO else "has no label smoothing"
            raise UniDPOError(
                f"dpo_label_smoothing is {self.dpo_label_smoothing}, but pref_loss: {self.pref_loss} {weighs}: "
                "set it to 0, or choose pref_loss: sigmoid"
            )
        if self.pref_bco_weight > 0:
            weights = self.loss_weights | {"bco_pair": self.pref_bco_weight}
            raise UniDPOError(
                f"pref_bco_weight is {self.pref_bco_weight}, but pref_loss: {self.pref_loss} has no BCO term by that "
                f"name: set it to 0, and pref_loss to {{{written(weights)}}} if you mean that"
            )
        if is_env_enabled("USE_MCA"):
            raise UniDPOError(
                f"USE_MCA=1 trains through Megatron, which does not know pref_loss: {self.pref_loss}: unset USE_MCA"
            )
