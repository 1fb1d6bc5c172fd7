"""Deep deterministic policy gradient (Lillicrap et al., ICLR 2016) as AMC uses it, for all agents that learn so."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnrl_lightning.core.checks import require_number, require_whole, require_within
from gnnrl_lightning.searching.agents.protocol import Descend
from gnnrl_lightning.searching.replay import Replay

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transitions:
    """N steps of episodes.

    Attributes:
        states: What the actor saw, [N, S].
        actions: What was done, [N, A] in [0, 1].
        rewards: [N].
        terminal: Whether the episode was over, [N] of 0 and 1.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    terminal: Tensor


class Heads(nn.Module):
    """Actor and critic of AMC: two hidden layers each; the critic's first adds a layer of the state and of the action.

    Args:
        state_size: S.
        action_size: A.
        hidden_size: Of both layers (AMC: 300).
    """

    def __init__(self, state_size: int, action_size: int, hidden_size: int):
        super().__init__()
        self.actor = nn.Sequential(
            *(nn.Linear(state_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size), nn.ReLU()),
            *(nn.Linear(hidden_size, action_size), nn.Sigmoid()),
        )
        self.of_state = nn.Linear(state_size, hidden_size)
        self.of_action = nn.Linear(action_size, hidden_size)
        self.value = nn.Sequential(
            *(nn.ReLU(), nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))
        )
        for layer in (self.actor[-2], self.value[-1]):
            nn.init.uniform_(cast(nn.Linear, layer).weight, -3e-3, 3e-3)

    def critic(self, states: Tensor, actions: Tensor) -> Tensor:
        """Values of actions [N, A] in states [N, S], [N]."""
        return cast(Tensor, self.value(self.of_state(states) + self.of_action(actions))).squeeze(-1)


class Policy(Protocol):
    """What DDPG trains: heads, and whatever of the agent's own makes states of what the replay memory holds."""

    heads: Heads

    def transitions(self, batch: Mapping[str, Tensor]) -> Transitions:
        """The N steps that rows of the replay memory stand for, with states as this policy sees them now."""

    def next_states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What it sees after each of these steps, [N, S]; of no meaning where the episode was over."""


def losses(policy: Heads, target: Heads, steps: Transitions, next_states: Tensor, gamma: float) -> dict[str, Tensor]:
    """The critic's squared temporal difference, and what leads the actor to actions of more value.

    Args:
        policy: The heads that learn.
        target: Those that follow it slowly, for the value of the next state.
        steps: What was done.
        next_states: The next states as the target sees them, [N, S].
        gamma: Discount.

    Returns:
        `critic_loss`, and `actor_loss`, whose gradient is minus the deterministic policy gradient (Silver et al., 2014)
        and does not reach the critic.
    """
    with torch.no_grad():
        following = target.critic(next_states, target.actor(next_states))
        wanted = steps.rewards + gamma * (1 - steps.terminal) * following
    actions = policy.actor(steps.states)
    leaf = actions.detach().requires_grad_()
    (slope,) = torch.autograd.grad(policy.critic(steps.states.detach(), leaf).sum(), leaf)
    return {
        "critic_loss": F.mse_loss(policy.critic(steps.states, steps.actions), wanted),
        "actor_loss": -(actions * slope).sum(1).mean(),
    }


class DDPG(nn.Module):
    """Learner of a deterministic policy: exploration, replay memory, targets and updates.

    Our reading: actor and critic step together, down the sum of their losses, and the search's limit on gradients holds
    for both. Under DDP each rank remembers its own episodes and counts them for its own warm-up; gradients are
    averaged, and a checkpoint holds the memory of the first rank.

    Args:
        policy: What is trained, an `nn.Module`.
        replay: Of rows that `policy.transitions` understands, with a column `reward` of minus the error in 1.
        rows_per_update: Rows of a batch.
        planned: Episodes that the search has on each rank; None where nobody says.
        warmup: Episodes of random actions before learning begins (AMC: 100).
        noise: Standard deviation of the exploration at first (AMC: 0.5).
        noise_decay: What an episode leaves of it (AMC: 0.95).
        gamma: Discount (AMC: 1).
        tau: How far the targets go towards the policy in one update (AMC: 0.01).
        baseline_decay: Share of the old in the moving average that is taken from rewards (AMC: 0.5).
        lr_actor: Adam's learning rate of the actor, and of what makes states (AMC: 1e-4).
        lr_critic: The same of the critic (AMC: 1e-3).

    Raises:
        UserError: If a value is out of range.
    """

    episodes: Tensor
    baseline: Tensor

    def __init__(
        self,
        policy: Policy,
        replay: Replay,
        rows_per_update: int,
        planned: int | None,
        warmup: int,
        noise: float,
        noise_decay: float,
        gamma: float,
        tau: float,
        baseline_decay: float,
        lr_actor: float,
        lr_critic: float,
    ):
        super().__init__()
        require_whole("agent.ddpg.warmup", warmup, 0)
        for name, value in {"noise": noise, "lr_actor": lr_actor, "lr_critic": lr_critic}.items():
            require_number(f"agent.ddpg.{name}", value, above=0)
        shares = {"noise_decay": noise_decay, "gamma": gamma, "tau": tau, "baseline_decay": baseline_decay}
        for name, value in shares.items():
            require_within(f"agent.ddpg.{name}", value, 0, 1)
        if planned is not None and planned <= warmup:
            log.warning(
                "episodes=%d are all random: agent.ddpg.warmup=%d come before learning; give more or a shorter warm-up",
                planned,
                warmup,
            )
        assert isinstance(policy, nn.Module)
        self.policy: Any = policy
        self.target: Any = copy.deepcopy(policy).requires_grad_(False)
        self.replay = replay
        self.rows_per_update = rows_per_update
        self.warmup = warmup
        self.noise, self.noise_decay = noise, noise_decay
        self.gamma, self.tau, self.baseline_decay = gamma, tau, baseline_decay
        self.register_buffer("episodes", torch.zeros((), dtype=torch.long))
        self.register_buffer("baseline", torch.full((), torch.nan))
        heads: Heads = self.policy.heads
        critic = [*heads.of_state.parameters(), *heads.of_action.parameters(), *heads.value.parameters()]
        judges = {id(parameter) for parameter in critic}
        rest = [parameter for parameter in policy.parameters() if id(parameter) not in judges]
        self.optimizer = torch.optim.Adam([{"params": rest, "lr": lr_actor}, {"params": critic, "lr": lr_critic}])

    @property
    def warming_up(self) -> bool:
        """Whether actions are still random."""
        return int(self.episodes) < self.warmup

    @property
    def sigma(self) -> float:
        """Standard deviation of the exploration now."""
        return self.noise * float(self.noise_decay ** max(0, int(self.episodes) - self.warmup))

    def explore(self, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Actions drawn around these from a normal distribution cut off at 0 and 1."""
        uniform = torch.rand(actions.shape, generator=generator, dtype=torch.float64)
        return truncated_normal(actions, self.sigma, uniform)

    def learn(self, episodes: int, updates: int, generator: torch.Generator, descend: Descend) -> dict[str, float]:
        """Counts episodes that were added to the memory, and learns from it once the warm-up is over."""
        self.episodes += episodes
        metrics = {"sigma": self.sigma}
        if not self.warming_up:
            for _ in range(updates):
                metrics |= self._update(generator, descend)
        return metrics

    def _update(self, generator: torch.Generator, descend: Descend) -> dict[str, float]:
        batch = self.replay.sample(self.rows_per_update, generator)
        mean = batch["reward"].mean()
        known = torch.isfinite(self.baseline)
        decayed = self.baseline_decay * self.baseline + (1 - self.baseline_decay) * mean
        self.baseline.copy_(torch.where(known, decayed, mean))
        batch["reward"] = batch["reward"] - self.baseline
        steps = self.policy.transitions(batch)
        with torch.no_grad():
            next_states = self.target.next_states(batch)
        found = losses(self.policy.heads, self.target.heads, steps, next_states, self.gamma)
        descend(found["critic_loss"] + found["actor_loss"])
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.policy.parameters(), strict=True):
                slow.lerp_(fast, self.tau)
        return {name: float(loss.detach()) for name, loss in found.items()}


def truncated_normal(mean: Tensor, std: float, uniform: Tensor) -> Tensor:
    """Quantiles of N(mean, std²) cut off at 0 and 1.

    Args:
        mean: In [0, 1].
        std: Above 0.
        uniform: Which quantiles, in [0, 1), float64 on the CPU.
    """
    mean64 = mean.cpu().double()  # other devices may have no double precision
    low, high = (torch.special.ndtr((bound - mean64) / std) for bound in (0.0, 1.0))
    drawn = mean64 + std * torch.special.ndtri(low + (high - low) * uniform)
    return drawn.clamp(0, 1).to(mean)  # beyond the last quantile that a double can tell from 1
