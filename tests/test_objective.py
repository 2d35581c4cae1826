"""The objective against numbers worked out by hand, and against a naive float64 version.

By hand, one pair, β 2, η 0.7, τ_ref 2, γ 3, λ 0.001, τ_good 2.5, averaged log-probabilities
policy (−1.0, −1.5), reference (−0.9, −1.2), scores (4, 3):

    Δ_π = 0.5, Δ_ref = 0.3
    w_qual = σ(0.7) = 0.66818777
    w_perf = (1 − σ(2·0.5 − 2))³ = σ(1)³ = 0.73105858³ = 0.39071180
    −log σ(2·(0.5 − 0.3)) = −log σ(0.4) = 0.51301525
    NLL: −0.9 > −1.0 and 4 ≥ 2.5, so λ·1.0 = 0.001
    L = 0.66818777 · 0.39071180 · 0.51301525 + 0.001 = 0.13493230
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uni_dpo.errors import UniDPOError
from uni_dpo.objective import (
    PairLogps,
    UniDPOConfig,
    calibrated_nll,
    named_loss,
    performance_weight,
    quality_weight,
    uni_dpo_loss,
)


def tensor(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def naive_loss(logps: list[float], scores: list[float], config: UniDPOConfig) -> float:
    """The formula of the module's docstring, one pair, Python floats, no care for overflow."""
    policy_w, policy_l, reference_w, reference_l = logps

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    margin = policy_w - policy_l
    w_qual = sigmoid(config.eta * (scores[0] - scores[1]))
    w_perf = (1 - sigmoid(config.beta * margin - config.tau_ref)) ** config.gamma
    preference = -math.log(sigmoid(config.beta * (margin - (reference_w - reference_l))))
    active = reference_w > policy_w and scores[0] >= config.tau_good
    return w_qual * w_perf * preference + config.nll_lambda * (-policy_w if active else 0.0)


def test_loss_and_terms_by_hand() -> None:
    loss = uni_dpo_loss(
        PairLogps(tensor(-1.0), tensor(-1.5), tensor(-0.9), tensor(-1.2)),
        tensor(4),
        tensor(3),
        UniDPOConfig(),
    )
    torch.testing.assert_close(loss.quality_weight, tensor(0.66818777))
    torch.testing.assert_close(loss.performance_weight, tensor(0.39071180))
    assert loss.nll_active.tolist() == [True]
    torch.testing.assert_close(loss.losses, tensor(0.13493230), rtol=1e-6, atol=0)


def test_gradient_by_hand() -> None:
    """dL/dlogπ(y_w) = w_qual · (w_perf' · ℓ + w_perf · ℓ') − λ, with the numbers of the module's docstring.

    w_perf' = −γβ σ(βΔ_π − τ_ref) w_perf = −6 · 0.26894142 · 0.39071180 = −0.63047153
    ℓ' = −β (1 − σ(0.4)) = −2 · 0.40131234 = −0.80262468
    0.66818777 · (−0.63047153 · 0.51301525 + 0.39071180 · −0.80262468) − 0.001 = −0.42665996
    """
    chosen = tensor(-1.0).requires_grad_()
    rejected = tensor(-1.5).requires_grad_()
    logps = PairLogps(chosen, rejected, tensor(-0.9), tensor(-1.2))
    uni_dpo_loss(logps, tensor(4), tensor(3), UniDPOConfig()).losses.sum().backward()
    torch.testing.assert_close(chosen.grad, tensor(-0.42665996), rtol=1e-6, atol=0)
    torch.testing.assert_close(rejected.grad, tensor(0.42565996), rtol=1e-6, atol=0)


def test_gradient_flows_through_the_performance_weight() -> None:
    margin = tensor(0.5).requires_grad_()
    performance_weight(margin, beta=2.0, tau_ref=2.0, gamma=3.0).sum().backward()
    torch.testing.assert_close(margin.grad, tensor(-0.63047153), rtol=1e-5, atol=0)


def test_weights_at_their_landmarks() -> None:
    torch.testing.assert_close(quality_weight(tensor(3), tensor(3), 0.7), tensor(0.5))
    torch.testing.assert_close(performance_weight(tensor(1.0), 2.0, 2.0, 3.0), tensor(0.125))
    torch.testing.assert_close(performance_weight(tensor(-7.0, 9.0), 2.0, 2.0, 0.0), tensor(1.0, 1.0))


@pytest.mark.parametrize(
    ("policy", "reference", "score", "active"),
    [
        (-1.0, -0.9, 2.5, True),
        (-1.0, -0.9, 2.49, False),
        (-1.0, -1.0, 2.5, False),
        (-0.9, -1.0, 2.5, False),
    ],
    ids=["good and lost", "not good", "not lost", "gained"],
)
def test_nll_is_active_only_for_good_answers_that_lost_probability(
    policy: float, reference: float, score: float, active: bool
) -> None:
    nll, mask = calibrated_nll(tensor(policy), tensor(reference), tensor(score), tau_good=2.5)
    assert mask.tolist() == [active]
    torch.testing.assert_close(nll, tensor(-policy if active else 0.0))


def test_everything_off_is_half_of_dpo() -> None:
    torch.manual_seed(0)
    policy_w, policy_l, reference_w, reference_l = (-30 * torch.rand(7) for _ in range(4))
    config = UniDPOConfig(beta=0.1, eta=0, gamma=0, nll_lambda=0)
    logps = PairLogps(policy_w, policy_l, reference_w, reference_l)
    loss = uni_dpo_loss(logps, 5 * torch.rand(7), 5 * torch.rand(7), config)
    dpo = -torch.nn.functional.logsigmoid(0.1 * ((policy_w - policy_l) - (reference_w - reference_l)))
    assert torch.equal(loss.losses, 0.5 * dpo)


finite = st.floats(-10, 0)


@settings(max_examples=200, deadline=None)
@given(
    logps=st.tuples(finite, finite, finite, finite),
    scores=st.tuples(st.floats(0, 10), st.floats(0, 10)),
    beta=st.floats(0.05, 3),
    eta=st.floats(0, 2),
    tau_ref=st.floats(-3, 3),
    gamma=st.floats(0, 5),
)
def test_equals_the_naive_version_in_loss_and_gradient(
    logps: tuple[float, ...],
    scores: tuple[float, float],
    beta: float,
    eta: float,
    tau_ref: float,
    gamma: float,
) -> None:
    config = UniDPOConfig(beta=beta, eta=eta, tau_ref=tau_ref, gamma=gamma, nll_lambda=0.2)
    leaves = [tensor(value, dtype=torch.float64).requires_grad_() for value in logps]
    loss = uni_dpo_loss(
        PairLogps(*leaves),
        tensor(scores[0], dtype=torch.float64),
        tensor(scores[1], dtype=torch.float64),
        config,
    ).losses
    expected = naive_loss(list(logps), list(scores), config)
    # The oracle's own 1 − σ(x) is good to about 1e-9 at the far end of the range.
    assert loss.item() == pytest.approx(expected, rel=1e-7, abs=1e-8)
    loss.sum().backward()
    # The indicator jumps where policy and reference agree: no difference quotient there.
    if abs(logps[0] - logps[2]) > 1e-3:
        for position in (0, 1):
            step = 1e-6
            moved = [[value + sign * step * (at == position) for at, value in enumerate(logps)] for sign in (1, -1)]
            slope = (naive_loss(moved[0], list(scores), config) - naive_loss(moved[1], list(scores), config)) / (
                2 * step
            )
            assert leaves[position].grad.item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    halves = [tensor(value, dtype=dtype) for value in (-1.0, -1.5, -0.9, -1.2)]
    loss = uni_dpo_loss(PairLogps(*halves), tensor(4, dtype=dtype), tensor(3, dtype=dtype), UniDPOConfig())
    exact = uni_dpo_loss(PairLogps(*(half.float() for half in halves)), tensor(4), tensor(3), UniDPOConfig())
    assert loss.losses.dtype == torch.float32
    assert torch.equal(loss.losses, exact.losses)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_finite_at_the_extremes(gamma: float) -> None:
    extremes = torch.tensor([-1e4, -1.0, 0.0, 1e4])
    grid = torch.cartesian_prod(extremes, extremes, extremes, extremes)
    leaves = [column.clone().requires_grad_() for column in grid.T]
    for scores in ((1e4, -1e4), (-1e4, 1e4), (0.0, 0.0)):
        score_w, score_l = (torch.full((len(grid),), score) for score in scores)
        loss = uni_dpo_loss(PairLogps(*leaves), score_w, score_l, UniDPOConfig(gamma=gamma))
        gradients = torch.autograd.grad(loss.losses.sum(), leaves)
        assert torch.isfinite(loss.losses).all()
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta", 0.0), ("beta", math.nan), ("eta", -1.0), ("gamma", -0.1), ("nll_lambda", -1.0), ("eta", "0.7")],
)
def test_senseless_hyperparameters_are_refused(name: str, value: object) -> None:
    with pytest.raises(UniDPOError, match=name):
        UniDPOConfig(**{name: value})


HAND = PairLogps(tensor(-1.0, -2.0), tensor(-1.5, -1.8), tensor(-0.9, -2.5), tensor(-1.2, -1.7))
"""Two pairs: ρ_w = (−0.1, 0.5), ρ_l = (−0.3, −0.1), so that ρ_w − ρ_l = (0.2, 0.6); logπ_w − logπ_l = (0.5, −0.2)."""
BY_HAND = {
    # −log σ(0.4), −log σ(1.2)
    "sigmoid": (0.51301525, 0.26328247),
    # 1 − 0.4, max(0, 1 − 1.2)
    "hinge": (0.6, 0.0),
    # (0.2 − 0.25)², (0.6 − 0.25)²
    "ipo": (0.0025, 0.1225),
    # z_w = 0.2, z_l = max(0, −0.2) = 0: ½ (σ(0.2) + σ(−1)), ½ (σ(−1) + σ(−0.6))
    "kto_pair": (0.40938771, 0.31164256),
    # δ = 0.1: −log σ(−0.3) − log σ(0.7), −log σ(0.9) − log σ(0.3)
    "bco_pair": (1.25754129, 0.89550912),
    # log odds: −1 − log(1 − e⁻¹) = −0.54132485, −1.5 − log(1 − e⁻¹·⁵) = −1.24751754: 1 − 2 log σ(0.70619269);
    # −2 − log(1 − e⁻²) = −1.85458655, −1.8 − log(1 − e⁻¹·⁸) = −1.61931843: 2 − 2 log σ(−0.23526811)
    "orpo": (1.80227098, 3.63536845),
    # γ = 0.5: −log σ(0.5), −log σ(−0.9)
    "simpo": (0.47407698, 1.24115387),
    # −logπ_w
    "sft": (1.0, 2.0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_other_losses_by_hand(name: str) -> None:
    found = named_loss(name, HAND, 2.0, simpo_gamma=0.5, bco_shift=0.1)
    torch.testing.assert_close(found, tensor(*BY_HAND[name]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", BY_HAND)
def test_other_losses_are_finite_at_the_extremes(name: str) -> None:
    extremes = torch.tensor([-1e4, -1.0, 0.0])
    leaves = [column.clone().requires_grad_() for column in torch.cartesian_prod(*[extremes] * 4).T]
    losses = named_loss(name, PairLogps(*leaves), 2.0)
    gradients = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    assert torch.isfinite(losses).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)


def test_an_unknown_loss_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no preference loss"):
        named_loss("none", HAND, 2.0)
