"""The random baseline."""

import torch
from torch import Tensor

from gnnrl_lightning.core.checks import UserError, require_whole
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.protocol import Descend, Episodes
from gnnrl_lightning.searching.agents.start import DrawsNear


class RandomAgent(DrawsNear):
    """Draws every group's ratio from U(0, max_ratio), each time anew; or near a plan that it is given.

    Args:
        task: The network's groups.
        max_ratio: In (0, 1].
        episodes_per_iteration: Episodes between two checkpoints.
    """

    def __init__(self, task: Task, max_ratio: float = 1.0, episodes_per_iteration: int = 16):
        super().__init__(len(task.topology.groups))
        if not 0 < max_ratio <= 1:
            raise UserError(f"agent.max_ratio={max_ratio} must be in (0, 1].")
        require_whole("agent.episodes_per_iteration", episodes_per_iteration, 1)
        self.max_ratio = max_ratio
        self.episodes_per_iteration = episodes_per_iteration

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Independent uniform ratios; or ratios near those of a plan, from the whole network."""
        whole = (observations >= 1).all(1, keepdim=True)
        if self.has_plan:
            drawn = 1 - self.near(len(observations), generator).to(observations)
            return torch.where(whole, drawn, 1 - 1e-6)
        return self.max_ratio * torch.rand(observations.shape, generator=generator).to(observations)

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """There is nothing to learn."""
        return {}

    def optimizer(self) -> None:
        """There is nothing to optimise."""
