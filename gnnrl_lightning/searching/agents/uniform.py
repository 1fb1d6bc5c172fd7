"""The uniform baseline."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.protocol import Descend, Episodes


class UniformAgent(nn.Module):
    """Removes the same fraction of every group: one network, whatever the number of episodes.

    Args:
        task: The search; of no interest.
    """

    episodes_per_iteration = 64
    """They are all the same network, evaluated once."""

    def __init__(self, task: Task):
        super().__init__()

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """The largest equal ratios, which the environment scales to the budget."""
        return torch.full_like(observations, 1 - 1e-6)

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """There is nothing to learn."""
        return {}

    def optimizer(self) -> None:
        """There is nothing to optimise."""
