"""No search: what the error curves say, and a handful of rewards to choose among."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.protocol import Descend, Episodes


class ClosedFormAgent(nn.Module):
    """Keeps the best of the few plans that the search opens with, see `closed_form_plans`: at most 8 evaluations.

    Args:
        task: The search, which must begin with these plans.

    Raises:
        UserError: If it does not.
    """

    episodes_per_iteration = 8
    """They are all the same network, which is known."""
    kept: Tensor

    def __init__(self, task: Task):
        super().__init__()
        if task.plans is None:
            raise UserError("agent=closed_form does nothing but choose among the first plans; give start=closed_form.")
        self.register_buffer("kept", torch.ones(len(task.topology.groups)))

    def begin(self, kept: Tensor) -> None:
        """Remembers the best plan."""
        self.kept.copy_(kept)

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """The plan, from the whole network; where the environment asks again, equal ratios."""
        whole = (observations >= 1).all(1, keepdim=True)
        return torch.where(whole, 1 - self.kept.to(observations), 1 - 1e-6)

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """There is nothing to learn."""
        return {}

    def optimizer(self) -> None:
        """There is nothing to optimise."""
