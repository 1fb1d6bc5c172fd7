"""One threshold for the scores of the whole network: no search."""

from bisect import bisect_left
from functools import cached_property

import torch
from torch import Tensor, nn

from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.protocol import Descend, Episodes


class GlobalAgent(nn.Module):
    """Removes the least important channels, wherever they are: one network, whatever the number of episodes.

    One threshold for the whole network, as in Liu et al., "Network Slimming", ICCV 2017: the importance decides how
    many channels each group keeps, and not only which. It is as good as the scores of different groups are comparable.

    Channels go in ascending order of their scores, of equal ones the first in the network, until the cost is within the
    budget. What one coarse group too many has left of it goes to the most important of those that fit, so that this
    network costs what all others do. Our reading: a group that is as narrow as it may be loses no more, and a group
    whose widths have a divisor keeps channels that are below the threshold until a whole step of them is.

    Args:
        task: The network's groups, what they cost, the budget and the scores.
    """

    episodes_per_iteration = 64
    """They are all the same network, evaluated once."""

    def __init__(self, task: Task):
        super().__init__()
        self._task = task

    @cached_property
    def widths(self) -> Tensor:
        """The widths above the threshold, [G]; the scores are there when the search begins."""
        topology, scores = self._task.topology, torch.cat(self._task.scores()).cpu()
        groups = topology.group_of_slot[scores.argsort(stable=True)]
        full, allowed = topology.full_widths(), [group.widths() for group in topology.groups]

        def without(count: int) -> Tensor:
            left = full - groups[:count].bincount(minlength=len(full))
            return torch.tensor([w[bisect_left(w, n)] for w, n in zip(allowed, left.tolist(), strict=True)])

        # A cost that is not quite monotonic (latency) may be within the budget for fewer channels removed as well.
        fewest = bisect_left(
            range(len(groups) + 1), True, key=lambda count: bool(self._task.cost(without(count)) <= self._task.allowed)
        )
        return self._filled(without(fewest), groups[:fewest].flip(0).tolist())

    def _filled(self, widths: Tensor, removed: list[int]) -> Tensor:
        """Hands channels back, the most important first, while a step of their group is within the budget.

        Args:
            widths: Above the threshold, [G].
            removed: The group of every channel below it, the most important first.
        """
        groups, closed = self._task.topology.groups, set()
        for index in removed:
            if index in closed:
                continue
            wider = widths.clone()
            wider[index] = min((w for w in groups[index].widths() if w > widths[index]), default=groups[index].width)
            if wider[index] > widths[index] and self._task.cost(wider) <= self._task.allowed:
                widths = wider
            else:
                closed.add(index)
        return widths

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """What brings the groups to these widths."""
        kept = (self.widths / self._task.topology.full_widths()).to(observations)
        return (1 - kept / observations).clamp(min=0)

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """There is nothing to learn."""
        return {}

    def optimizer(self) -> None:
        """There is nothing to optimise."""
