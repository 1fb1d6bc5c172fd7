"""NetAdapt: one group at a time (ECCV 2018)."""

import logging
import math

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import require_number
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.protocol import Descend, Episodes

log = logging.getLogger(__name__)


class NetAdaptAgent(nn.Module):
    """Greedily shrinks one group after the other (Yang et al., "NetAdapt", ECCV 2018).

    In each round every group is a candidate: it alone is made narrower, as little as lets the cost fall by the round's
    step. The group of the best candidate is then decided. A round is an iteration, with one episode a group.

    Our reading:

    * Only networks at the budget have a reward. So a candidate is what was decided so far, with its group narrower, and
      all groups then pruned by the same fraction to the budget.
    * Every candidate is cut from the network's own weights. In the paper a round goes on with those of the last winner,
      so that its brief fine-tuning adds up; here rewards are of widths alone, and the fine-tuning comes at the end.
    * The first step is `reduction` of the cost, as in the authors' code. They go on for as many rounds as it takes;
      here the rounds are known from the progress of the search, and what is left to remove is spread over those that
      are left, each step `decay` times the one before. So the budget is reached in the last full round, if the groups
      can give so much. For steps as small as the authors', `episodes` must be 20 to 40 times the number of groups.
    * A group that cannot give the whole step gives what it can (as in the authors' code).
    * The candidate of a group that cannot lower the cost at all is what was decided so far: the winner of the last
      round, whose reward is known. So are all of them when the budget is reached before the search is over.
    * A last round that is cut short decides nothing.

    Under DDP each rank searches on its own, and since nothing here is random, alike: use one device.

    Args:
        task: The network's groups, what they cost and the budget.
        reduction: Part of the cost that the first round removes (authors' code: 0.025).
        decay: Each step as a part of the one before (authors' code: 0.96).

    Raises:
        UserError: If a value is out of range.
    """

    decided: Tensor
    step: Tensor
    rounds: Tensor

    def __init__(self, task: Task, reduction: float, decay: float):
        super().__init__()
        require_number("agent.reduction", reduction, above=0, below=1)
        require_number("agent.decay", decay, above=0, below=1)
        self.episodes_per_iteration = len(task.topology.groups)
        if task.episodes is not None and task.episodes < self.episodes_per_iteration:
            log.warning(
                "episodes=%d decide no group: a round takes %d, one for each group; give at least so many",
                task.episodes,
                self.episodes_per_iteration,
            )
        self.decay = decay
        self._task = task
        self._full = task.topology.full_widths()
        self._cost = int(task.cost(self._full))
        self.register_buffer("decided", self._full.clone())
        self.register_buffer("step", torch.tensor(math.ceil(reduction * self._cost)))
        self.register_buffer("rounds", torch.tensor(0))

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Group i's candidate for network i (and G + i), if it is whole; then the same fraction of all groups."""
        whole = (observations == 1).all(1).cpu()
        ratios = torch.full(observations.shape, 1 - 1e-6)
        if whole.any():
            rows = torch.arange(len(ratios))[whole] % len(self._full)
            ratios[whole] = 1 - self._candidates()[rows] / self._full
        return ratios.to(observations)

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """Decides the best candidate's group; of equally good ones the one that keeps most."""
        rewards, candidates = episodes.rewards.sum(0).tolist(), self._candidates()
        widths = candidates.diagonal()
        kept = (widths / self._full).tolist()
        narrower = (widths < self.decided.cpu()).nonzero().flatten().tolist()
        if len(rewards) == len(candidates) and narrower:
            self.decided.copy_(candidates[max(narrower, key=lambda group: (rewards[group], kept[group]))])
            self.rounds += 1
            left = max(1, int((1 - progress) * int(self.rounds) / progress + 1e-6))  # full rounds
            surplus = self._cost_of(self.decided) - self._task.allowed
            self.step.fill_(math.ceil(surplus * (1 - self.decay) / (1 - self.decay**left)))
        return {"decided_cost_ratio": self._cost_of(self.decided) / self._cost}

    def optimizer(self) -> None:
        """There is nothing to optimise."""

    def _cost_of(self, widths: Tensor) -> int:
        return int(self._task.cost(widths.cpu()))

    def _candidates(self) -> Tensor:
        """What is decided, with one group narrower, [G, G]; row i is group i's, and unchanged if that is no use."""
        candidates = self.decided.cpu().repeat(len(self._full), 1)
        cost = self._cost_of(self.decided)
        target = max(cost - int(self.step), self._task.allowed)
        if cost <= target:
            return candidates
        for index, group in enumerate(self._task.topology.groups):
            width = int(candidates[index, index])
            widths = torch.tensor([each for each in group.widths() if each < width], dtype=torch.long)
            rows = candidates[index].repeat(len(widths), 1)
            rows[:, index] = widths
            costs = self._task.cost(rows)
            if (costs < cost).any():
                candidates[index, index] = widths[costs <= max(target, int(costs.min()))].max()
        return candidates
