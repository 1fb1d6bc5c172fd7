"""The random baseline."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.search.agents.protocol import Descend, Episodes
from gnnrl_lightning.topology.hierarchy import HierarchicalGraph


class RandomAgent(nn.Module):
    """Draws every group's ratio from U(0, 1), each time anew.

    Args:
        graph: The network; only its number of groups matters.
        episodes_per_iteration: Episodes between two checkpoints.
    """

    def __init__(self, graph: HierarchicalGraph, episodes_per_iteration: int = 16):
        super().__init__()
        self.episodes_per_iteration = episodes_per_iteration

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Independent uniform ratios."""
        return torch.rand(observations.shape, generator=generator).to(observations)

    def learn(self, episodes: Episodes, progress: float, descend: Descend) -> dict[str, float]:
        """There is nothing to learn."""
        return {}

    def optimizer(self) -> None:
        """There is nothing to optimise."""
