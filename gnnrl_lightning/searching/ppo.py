"""Proximal policy optimisation as pure functions (Schulman et al., 2017), tested against torchrl."""

import torch
from torch import Tensor


def generalized_advantage(
    rewards: Tensor, values: Tensor, active: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates of episodes that end by themselves (Schulman et al., 2016).

    Args:
        rewards: Reward after each step, [T, B].
        values: The critic's value before each step, [T, B].
        active: Whether the step was taken, [T, B]; steps after the end of an episode count nothing.
        gamma: Discount.
        lam: Mixes one-step (0) and Monte-Carlo (1) estimates.

    Returns:
        Advantages and returns (advantage + value), [T, B] each, zero where not active.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[0])
    following = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        mask = active[t].to(rewards)
        delta = rewards[t] + gamma * following - values[t]
        running = mask * (delta + gamma * lam * running)
        following = mask * values[t]
        advantages[t] = running
    return advantages, (advantages + values) * active


def clipped_objective(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> dict[str, Tensor]:
    """The clipped surrogate, to be minimised, with its diagnostics (GNN-RL, eq. 8).

    Args:
        log_prob: Log-probability of each action now, [N].
        old_log_prob: The same under the policy that acted, [N].
        advantage: Advantage of each action, [N].
        clip: How far the probability ratio may leave 1 before it earns nothing more.

    Returns:
        `loss`, `approx_kl` (Schulman's low-variance estimator) and `clip_fraction`.
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    with torch.no_grad():
        kl = ((ratio - 1) - log_ratio).mean()
        clipped = ((ratio - 1).abs() > clip).float().mean()
    return {"loss": -surrogate.mean(), "approx_kl": kl, "clip_fraction": clipped}


def standardize(values: Tensor) -> Tensor:
    """Zero mean and unit variance; a single value is only centred."""
    centred = values - values.mean()
    return centred / (values.std() + 1e-8) if len(values) > 1 else centred
