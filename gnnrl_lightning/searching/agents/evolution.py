"""Evolution of widths, as in MetaPruning (ICCV 2019)."""

import math

import torch
from torch import Tensor

from gnnrl_lightning.core.checks import require_number, require_whole
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.protocol import Descend, Episodes
from gnnrl_lightning.searching.agents.start import DrawsNear

_REDRAWS = 10


class EvolutionAgent(DrawsNear):
    """Breeds networks from the best so far (Liu et al., "MetaPruning", ICCV 2019).

    A network's genes are its widths. The first generation is drawn at random (as the candidates of Li et al.,
    "EagleEye", ECCV 2020); half of each later one are mutants of a parent, half are crosses of two, gene by gene.

    Our reading: MetaPruning draws until a network is within the budget. Here the environment brings it there, and the
    widths that it arrived at become the genes, so that parents are networks that were really evaluated. A child that
    repeats a parent or a sibling is bred again, and drawn at random when that fails ten times.

    Given a plan, the first generation and all new genes are drawn near it.

    Under DDP each rank breeds a population of its own; a checkpoint holds that of the first.

    Args:
        task: The network's groups and their allowed widths.
        episodes_per_iteration: Networks of a generation (MetaPruning: 50).
        parents: The best of all generations, from which the next is bred (MetaPruning: 10).
        mutation: Probability that a mutant's gene is drawn anew (MetaPruning: 0.1).

    Raises:
        UserError: If a value is out of range.
    """

    widths: Tensor
    rewards: Tensor

    def __init__(self, task: Task, episodes_per_iteration: int, parents: int, mutation: float):
        super().__init__(len(task.topology.groups))
        require_whole("agent.episodes_per_iteration", episodes_per_iteration, 1)
        require_whole("agent.parents", parents, 2)
        require_number("agent.mutation", mutation, above=0, below=1)
        self.episodes_per_iteration = episodes_per_iteration
        self.mutation = mutation
        self._full = task.topology.full_widths()
        self._allowed = [torch.tensor(group.widths()) for group in task.topology.groups]
        self.register_buffer("widths", torch.zeros(parents, len(self._full), dtype=torch.long))
        self.register_buffer("rewards", torch.full((parents,), -math.inf))  # there is no such parent yet

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """A child's widths for every whole network; where these are not enough, the same fraction of all groups."""
        whole = (observations == 1).all(1).cpu()
        ratios = torch.full(observations.shape, 1 - 1e-6)
        ratios[whole] = 1 - self._generation(int(whole.sum()), generator) / self._full
        return ratios.to(observations)

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """The best of parents and children are the next parents."""
        widths = torch.cat([self.widths.cpu(), episodes.widths])
        rewards = torch.cat([self.rewards.cpu(), episodes.rewards.sum(0)])
        found: dict[tuple[int, ...], float] = {}
        for index in rewards.argsort(descending=True, stable=True).tolist():
            if rewards[index] > -math.inf:
                found.setdefault(tuple(widths[index].tolist()), float(rewards[index]))
        for index, (genes, reward) in enumerate(list(found.items())[: len(self.widths)]):
            self.widths[index] = torch.tensor(genes)
            self.rewards[index] = reward
        parents = self.rewards[self.rewards > -math.inf]
        return {"worst_parent": float(parents.min()), "mean_parent": float(parents.mean())}

    def optimizer(self) -> None:
        """There is nothing to optimise."""

    def _generation(self, count: int, generator: torch.Generator) -> Tensor:
        """Widths of `count` children, [count, G]."""
        parents = self.widths[self.rewards > -math.inf].cpu()
        children = torch.zeros(count, len(self._full), dtype=torch.long)
        seen = {tuple(genes) for genes in parents.tolist()}
        for index in range(count):
            for _ in range(_REDRAWS if len(parents) else 0):
                pair = parents[torch.randint(len(parents), (2,), generator=generator)]
                # A cross takes each gene from either parent, a mutant is the first of them but for a few new genes.
                mutant = index < count / 2
                other = self._draw(generator) if mutant else pair[1]
                taken = torch.rand(len(self._full), generator=generator) < (self.mutation if mutant else 0.5)
                children[index] = torch.where(taken, other, pair[0])
                if tuple(children[index].tolist()) not in seen:
                    break
            else:
                children[index] = self._draw(generator)
            seen.add(tuple(children[index].tolist()))
        return children

    def _draw(self, generator: torch.Generator) -> Tensor:
        """Any allowed width of each group, all equally likely; or widths near those of a plan, [G]."""
        if self.has_plan:
            wanted = self.near(1, generator)[0] * self._full
            return torch.stack([c[(c - w).abs().argmin()] for c, w in zip(self._allowed, wanted, strict=True)])
        places = torch.rand(len(self._allowed), generator=generator).tolist()
        return torch.stack(
            [widths[int(place * len(widths))] for widths, place in zip(self._allowed, places, strict=True)]
        )
