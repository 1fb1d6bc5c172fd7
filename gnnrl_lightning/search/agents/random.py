"""The random baseline."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.search.agents.protocol import Descend, Episodes
from gnnrl_lightning.task import Task


class RandomAgent(nn.Module):
    """Draws every group's ratio from U(0, 1), each time anew.

    Args:
        task: The search; of no interest.
        episodes_per_iteration: Episodes between two checkpoints.
    """

    def __init__(self, task: Task, episodes_per_iteration: int = 16):
        super().__init__()
        self.episodes_per_iteration = episodes_per_iteration

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Independent uniform ratios."""
        return torch.rand(observations.shape, generator=generator).to(observations)

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """There is nothing to learn."""
        return {}

    def optimizer(self) -> None:
        """There is nothing to optimise."""
