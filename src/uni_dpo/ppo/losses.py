"""The mathematics of PPO on answers, apart from models: pure functions of (B, T) tensors.

Every tensor has a row per answer and a column per answer token; `mask` is 1 on the tokens of an answer, its end
of turn included, and 0 on the padding after them. Follows Schulman et al., arXiv 1707.06347 (the clipped
objective) and arXiv 1506.02438 (GAE); the reward per token is that of Ziegler et al., arXiv 1909.08593.
"""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, logps: Tensor, reference_logps: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return what each token earns: −β · (log π − log π_ref), and at an answer's last token also its score.

    Args:
        scores: (B,) one per answer.
        logps: (B, T) of the policy that sampled the answers.
        reference_logps: (B, T) of the reference.
        mask: (B, T), at least one token per answer.
        kl_coef: β.
    """
    rewards = -kl_coef * (logps - reference_logps) * mask
    last = mask.long().sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.to(rewards.dtype)[:, None])


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns that the value head is to learn.

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}, with V and A 0 after the last token.

    Args:
        rewards: (B, T) per token.
        values: (B, T) the value before each token, as the policy that sampled the answers saw it.
        mask: (B, T).
        gamma: γ, the discount.
        lam: λ, from 0 (one step) to 1 (all steps).

    Returns:
        (B, T) advantages and (B, T) returns A + V, both 0 on padding.
    """
    rewards, values = rewards * mask, values * mask
    following = torch.zeros_like(values[:, 0])
    advantage = torch.zeros_like(following)
    columns = []
    for t in reversed(range(values.shape[1])):
        advantage = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * advantage
        following = values[:, t]
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1) * mask
    return advantages, (advantages + values) * mask


def policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return the clipped objective's loss per token, −min(ρ A, clamp(ρ, 1 − ε, 1 + ε) A) with ρ = π / π_old.

    Args:
        logps: (B, T) of the policy that is trained.
        old_logps: (B, T) of the policy that sampled the answers.
        advantages: (B, T).
        clip: ε.
    """
    ratio = (logps - old_logps).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error per token, of the value or of the value held within ±ε of the old one: the larger.

    Args:
        values: (B, T) of the value head that is trained.
        old_values: (B, T) when the answers were sampled.
        returns: (B, T) what they should have been.
        clip: ε.
    """
    held = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2)


def whitened(values: Tensor, mean: Tensor, variance: Tensor, mask: Tensor) -> Tensor:
    """Advantages with mean 0 and variance 1 over all tokens, padding left at 0.

    Args:
        values: (B, T).
        mean, variance: scalars, over the tokens of all processes.
        mask: (B, T).
    """
    return (values - mean) * (variance + 1e-8).rsqrt() * mask
