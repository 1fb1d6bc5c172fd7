"""What every agent is: something that proposes ratios and learns from how they did."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Descend = Callable[[Tensor], None]
"""Takes one optimiser step down a loss; the search module's, so that gradients are averaged across ranks."""


@dataclass(frozen=True)
class Episodes:
    """Finished episodes of one iteration: T steps at most, B episodes, G groups.

    Attributes:
        observations: Fraction that each group kept before each step, [T, B, G].
        ratios: Fraction of it that the agent removed, as proposed, [T, B, G].
        active: Whether the step was taken; an episode that is over waits for the others, [T, B].
        rewards: Reward after each step, [T, B]; only an episode's last one is not 0.
        widths: Where each episode ended, [B, G].
    """

    observations: Tensor
    ratios: Tensor
    active: Tensor
    rewards: Tensor
    widths: Tensor

    @property
    def last(self) -> Tensor:
        """Which step ended its episode, [T, B]: the one that earned the reward."""
        following = torch.zeros_like(self.active)
        following[:-1] = self.active[1:]
        return self.active & ~following


class Agent(Protocol):
    """An agent knows its task and nothing of images, of pruning or of what the environment does inside.

    One that can start from a plan has a method `begin(kept)`, which is called once, before its first proposal, with the
    fraction [G] that each group keeps in the best plan known so far. What it sets must be in the agent's state.
    """

    episodes_per_iteration: int
    """Episodes between two calls of `learn`, on each rank."""

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Ratios in [0, 1), [B, G], for the fractions that each group of B networks still keeps, [B, G]."""

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """Learns from an iteration.

        Args:
            episodes: What was tried.
            progress: How much of the search is over, in [0, 1].
            generator: Whatever is random draws from it.
            descend: Takes one step of the agent's optimiser down a loss.

        Returns:
            Numbers to log.
        """

    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimiser of its parameters, None if it has none to learn."""
