"""PPO's arithmetic against numbers worked out by hand, and against loops over single tokens."""

import math

import torch

from uni_dpo.ppo.losses import advantages_and_returns, policy_loss, token_rewards, value_loss, whitened


def tensor(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_token_rewards() -> None:
    """β 0.1. First answer, two tokens: −0.1·(−1 − −2) = −0.1, then −0.1·(−0.5 − −0.25) = 0.025, plus the score 3.

    Second answer, one token: −0.1·(−4 − −1) = 0.3, plus the score −2; nothing on the padding.
    """
    rewards = token_rewards(
        torch.tensor([3.0, -2.0], dtype=torch.float64),
        tensor([-1.0, -0.5], [-4.0, -9.0]),
        tensor([-2.0, -0.25], [-1.0, -7.0]),
        tensor([1, 1], [1, 0]),
        kl_coef=0.1,
    )
    torch.testing.assert_close(rewards, tensor([-0.1, 3.025], [-1.7, 0.0]))


def test_advantages_and_returns() -> None:
    """γ 0.9, λ 0.5, rewards (1, 0, 2), values (0.5, 1, 0.25).

    δ_2 = 2 − 0.25 = 1.75, δ_1 = 0 + 0.9·0.25 − 1 = −0.775, δ_0 = 1 + 0.9·1 − 0.5 = 1.4;
    A_2 = 1.75, A_1 = −0.775 + 0.45·1.75 = 0.0125, A_0 = 1.4 + 0.45·0.0125 = 1.405625; returns A + V.
    """
    advantages, returns = advantages_and_returns(
        tensor([1.0, 0.0, 2.0]), tensor([0.5, 1.0, 0.25]), tensor([1, 1, 1]), gamma=0.9, lam=0.5
    )
    torch.testing.assert_close(advantages, tensor([1.405625, 0.0125, 1.75]))
    torch.testing.assert_close(returns, tensor([1.905625, 1.0125, 2.0]))


def test_padding_changes_no_advantage() -> None:
    """Values and rewards on the padding are rubbish and must not leak into the tokens before."""
    short = advantages_and_returns(tensor([1.0, 2.0]), tensor([0.5, 0.1]), tensor([1, 1]), gamma=0.9, lam=0.8)
    padded = advantages_and_returns(
        tensor([1.0, 2.0, 7.0]), tensor([0.5, 0.1, 5.0]), tensor([1, 1, 0]), gamma=0.9, lam=0.8
    )
    for found, expected in zip(padded, short, strict=True):
        torch.testing.assert_close(found[:, :2], expected)
        assert found[0, 2] == 0


def test_lambda_one_is_the_discounted_return() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    _, returns = advantages_and_returns(rewards, values, torch.ones(3, 7), gamma=0.95, lam=1.0)
    for row in range(3):
        for t in range(7):
            naive = sum(0.95 ** (later - t) * float(rewards[row, later]) for later in range(t, 7))
            assert math.isclose(float(returns[row, t]), naive, rel_tol=1e-12)


def test_policy_loss() -> None:
    """ε 0.2. Ratios 1.5, 1.5, 0.5, 0.5 with advantages 2, −2, 2, −2:

    −min(3, 1.2·2) = −2.4; −min(−3, −2.4) = 3; −min(1, 1.6) = −1; −min(−1, −1.6) = 1.6.
    """
    ratio = tensor([1.5, 1.5, 0.5, 0.5])
    loss = policy_loss(ratio.log() - 3, torch.full_like(ratio, -3.0), tensor([2.0, -2.0, 2.0, -2.0]), clip=0.2)
    torch.testing.assert_close(loss, tensor([-2.4, 3.0, -1.0, 1.6]))


def test_gradient_of_the_policy_loss_at_ratio_one_is_minus_the_advantage() -> None:
    """There d(ρA)/d log π = ρA = A; beyond the clip, in the direction of the advantage, it is nothing."""
    logps = tensor([-1.0, -1.0, -0.5]).requires_grad_()
    policy_loss(logps, tensor([-1.0, -1.0, -1.0]), tensor([2.0, -3.0, 2.0]), clip=0.2).sum().backward()
    torch.testing.assert_close(logps.grad, tensor([-2.0, 3.0, 0.0]))


def test_value_loss() -> None:
    """ε 0.2. Value 1.0, old 0.5, return 2.0: held at 0.7; max(1, 1.69)/2 = 0.845.

    Value 0.6, old 0.5, return 0: within the clip, 0.36/2 = 0.18. Value 0, old 1, return 0: held at 0.8, 0.64/2.
    """
    loss = value_loss(tensor([1.0, 0.6, 0.0]), tensor([0.5, 0.5, 1.0]), tensor([2.0, 0.0, 0.0]), clip=0.2)
    torch.testing.assert_close(loss, tensor([0.845, 0.18, 0.32]))


def test_whitened() -> None:
    """Tokens 1, 3, 5 have mean 3 and variance 8/3; the padding stays 0."""
    found = whitened(tensor([1.0, 3.0], [5.0, 9.0]), torch.tensor(3.0), torch.tensor(8 / 3), tensor([1, 1], [1, 0]))
    step = 2 / math.sqrt(8 / 3)
    torch.testing.assert_close(found, tensor([-step, 0.0], [step, 0.0]), atol=1e-6, rtol=1e-6)
