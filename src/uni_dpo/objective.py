"""The Uni-DPO objective (arXiv 2506.10054), and the losses it is weighed with, as pure functions on 1-D tensors.

For a pair with answers y_w (chosen) and y_l (rejected) of scores S_w and S_l, and log-probabilities under the
policy π and the frozen reference:

    Δ_π   = logπ(y_w) − logπ(y_l)          Δ_ref likewise under the reference
    w_qual = σ(η (S_w − S_l))
    w_perf = (1 − σ(β Δ_π − τ_ref))^γ       gradient flows through it
    L = − w_qual · w_perf · log σ(β (Δ_π − Δ_ref))
        − λ · 1[logπ_ref(y_w) > logπ(y_w)] · 1[S_w ≥ τ_good] · logπ(y_w)

Everything is computed in float32 (or float64, where that comes in) and stays finite for any finite input.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from uni_dpo.settings.options import Finite, NotNegative, Positive, check_ranges


@dataclass(frozen=True)
class UniDPOConfig:
    """Hyperparameters of the objective, named as in the paper, at the published values.

    Raises:
        UniDPOError: a value is outside the range where the objective means something.
    """

    beta: Positive = 2.0
    eta: NotNegative = 0.7
    tau_ref: Finite = 2.0
    gamma: NotNegative = 3.0
    nll_lambda: NotNegative = 0.001
    tau_good: Finite = 2.5

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass
class ObjectiveArguments:
    """The objective's settings under the names that a trainer's arguments give them; β is the trainer's own."""

    uni_dpo_qual_eta: NotNegative = field(
        default=UniDPOConfig.eta, metadata={"help": "η: how fast the quality weight grows with the score gap."}
    )
    uni_dpo_tau_ref: Finite = field(
        default=UniDPOConfig.tau_ref, metadata={"help": "τ_ref: the policy margin from which a pair counts as learnt."}
    )
    uni_dpo_perf_gamma: NotNegative = field(
        default=UniDPOConfig.gamma, metadata={"help": "γ: how strongly learnt pairs lose weight (0: not at all)."}
    )
    uni_dpo_nll_lambda: NotNegative = field(
        default=UniDPOConfig.nll_lambda, metadata={"help": "λ: weight of the calibrated NLL term (0: off)."}
    )
    uni_dpo_tau_good: Finite = field(
        default=UniDPOConfig.tau_good,
        metadata={"help": "τ_good: the score from which a chosen answer is good enough for the NLL term."},
    )

    def objective_config(self, beta: float | None) -> UniDPOConfig:
        """Return the hyperparameters as they were set.

        Args:
            beta: β, under whatever name the trainer has it; None is refused like any other value that is no number.
        """
        return UniDPOConfig(
            beta=beta,  # type: ignore[arg-type]  # None only before the trainer's arguments have set it
            eta=self.uni_dpo_qual_eta,
            tau_ref=self.uni_dpo_tau_ref,
            gamma=self.uni_dpo_perf_gamma,
            nll_lambda=self.uni_dpo_nll_lambda,
            tau_good=self.uni_dpo_tau_good,
        )


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of the two answers of each pair, each of shape (pairs,), in nats.

    Summed or averaged over the answer's tokens: the caller's choice, the same for all four.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor


@dataclass(frozen=True)
class UniDPOLoss:
    """The loss of each pair and the terms it was made of, each of shape (pairs,).

    `quality_weight` and `performance_weight` and the boolean `nll_active` carry no gradient.
    """

    losses: Tensor
    quality_weight: Tensor
    performance_weight: Tensor
    nll_active: Tensor


def quality_weight(score_chosen: Tensor, score_rejected: Tensor, eta: float) -> Tensor:
    """Return w_qual: near 1 where the judge saw a wide gap, ½ where it saw none.

    Args:
        score_chosen: shape (pairs,), on the judge's scale.
        score_rejected: shape (pairs,), on the same scale.
        eta: η, how fast a gap saturates.
    """
    return torch.sigmoid(eta * (_precise(score_chosen) - _precise(score_rejected)))


def performance_weight(policy_margin: Tensor, beta: float, tau_ref: float, gamma: float) -> Tensor:
    """Return w_perf: near 1 where the policy still ranks the pair wrongly, near 0 where it has learnt it.

    Written as exp(γ · log σ(τ_ref − β Δ_π)), which is the same number and has a finite gradient everywhere.

    Args:
        policy_margin: Δ_π, shape (pairs,), in nats.
        beta: β.
        tau_ref: τ_ref, the margin β Δ_π at which half of the base weight is gone.
        gamma: γ, the focus; 0 turns the weight off.
    """
    return torch.exp(gamma * F.logsigmoid(tau_ref - beta * _precise(policy_margin)))


def calibrated_nll(
    policy_chosen: Tensor, reference_chosen: Tensor, score_chosen: Tensor, tau_good: float
) -> tuple[Tensor, Tensor]:
    """Return the NLL of chosen answers that are good and that the policy has come to find less likely than before.

    Args:
        policy_chosen: logπ(y_w), shape (pairs,), in nats.
        reference_chosen: logπ_ref(y_w), shape (pairs,), in nats.
        score_chosen: S_w, shape (pairs,).
        tau_good: τ_good, the score from which an answer counts as good.

    Returns:
        The term per pair (before λ), and the boolean mask of the pairs where it is active.
    """
    policy_chosen = _precise(policy_chosen)
    active = (_precise(reference_chosen) > policy_chosen) & (_precise(score_chosen) >= tau_good)
    return torch.where(active, -policy_chosen, torch.zeros_like(policy_chosen)), active.detach()


def uni_dpo_loss(logps: PairLogps, score_chosen: Tensor, score_rejected: Tensor, config: UniDPOConfig) -> UniDPOLoss:
    """Return the Uni-DPO loss of each pair.

    Args:
        logps: the four log-probabilities.
        score_chosen: S_w, shape (pairs,).
        score_rejected: S_l, shape (pairs,).
        config: the hyperparameters.
    """
    policy_margin = _precise(logps.policy_chosen) - _precise(logps.policy_rejected)
    reference_margin = _precise(logps.reference_chosen) - _precise(logps.reference_rejected)
    w_qual = quality_weight(score_chosen, score_rejected, config.eta)
    w_perf = performance_weight(policy_margin, config.beta, config.tau_ref, config.gamma)
    preference = -F.logsigmoid(config.beta * (policy_margin - reference_margin))
    nll, nll_active = calibrated_nll(logps.policy_chosen, logps.reference_chosen, score_chosen, config.tau_good)
    return UniDPOLoss(
        losses=w_qual * w_perf * preference + config.nll_lambda * nll,
        quality_weight=w_qual.detach(),
        performance_weight=w_perf.detach(),
        nll_active=nll_active,
    )


def named_loss(
    name: str, logps: PairLogps, beta: float, *, simpo_gamma: float = 0.5, bco_shift: Tensor | float = 0.0
) -> Tensor:
    """Return one of the other preference losses of each pair, shape (pairs,).

    With ρ = logπ − logπ_ref of an answer, and h = β (ρ_w − ρ_l):

    ========  ===========================================================================================
    sigmoid   −log σ(h), DPO (arXiv 2305.18290)
    hinge     max(0, 1 − h), SLiC (2305.10425)
    ipo       (ρ_w − ρ_l − 1/(2β))² (2310.12036)
    kto_pair  ½ (1 − σ(β (ρ_w − z_l)) + 1 − σ(β (z_w − ρ_l))), z the batch's mean ρ, 0 or more, KTO (2402.01306)
    bco_pair  −log σ(βρ_w − δ) − log σ(−(βρ_l − δ)), δ the mean reward so far (2404.04656)
    orpo      −logπ_w − β log σ(log odds_w − log odds_l) (2403.07691)
    simpo     −log σ(β (logπ_w − logπ_l) − γ) (2405.14734)
    sft       −logπ_w
    ========  ===========================================================================================

    Args:
        name: one of the above.
        logps: summed or averaged over an answer's tokens; `orpo` means something for averages only. Losses without a
            reference do not read the reference's.
        beta: β.
        simpo_gamma: γ of SimPO.
        bco_shift: δ of BCO; carries no gradient.
    """
    chosen, rejected = _precise(logps.policy_chosen), _precise(logps.policy_rejected)
    margin = chosen - rejected
    match name:
        case "sft":
            return -chosen
        case "simpo":
            return -F.logsigmoid(beta * margin - simpo_gamma)
        case "orpo":
            return -chosen - beta * F.logsigmoid(margin - (_log_other(chosen) - _log_other(rejected)))
    ratio_chosen = chosen - _precise(logps.reference_chosen)
    ratio_rejected = rejected - _precise(logps.reference_rejected)
    gain = margin - (_precise(logps.reference_chosen) - _precise(logps.reference_rejected))
    match name:
        case "sigmoid":
            return -F.logsigmoid(beta * gain)
        case "hinge":
            return torch.relu(1 - beta * gain)
        case "ipo":
            return (gain - 1 / (2 * beta)) ** 2
        case "kto_pair":
            z_chosen, z_rejected = (part.detach().mean().clamp(min=0) for part in (ratio_chosen, ratio_rejected))
            undesired = torch.sigmoid(-beta * (ratio_chosen - z_rejected))
            return 0.5 * (undesired + torch.sigmoid(-beta * (z_chosen - ratio_rejected)))
        case "bco_pair":
            return -F.logsigmoid(beta * ratio_chosen - bco_shift) - F.logsigmoid(bco_shift - beta * ratio_rejected)
    raise ValueError(f"no preference loss is called {name!r}")


def _log_other(logp: Tensor) -> Tensor:
    """log(1 − π) of log π, finite where π is 1."""
    return torch.log(-torch.expm1(logp.clamp(max=-torch.finfo(logp.dtype).eps)))


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
