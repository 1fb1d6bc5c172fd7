"""What is asked: a network, what its widths cost, and how much of that may stay."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.inputs import Inputs
from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.pruning.apply import make_plan, widths_among
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.rewrite import rewrite
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.pruning.verify import Removal, provable
from gnnrl_lightning.settings import SearchSettings
from gnnrl_lightning.topology import ChannelGroup, Topology, trace


@dataclass(frozen=True)
class Prunable:
    """A network whose channels can be removed.

    Attributes:
        original: The unpruned network.
        unpruned: Its groups.
        model: The network that is pruned now: the original itself, or what an earlier stage left of it.
        topology: Its groups.
        remove: How its channels are removed.
    """

    original: nn.Module
    unpruned: Topology
    model: nn.Module
    topology: Topology
    remove: Removal

    @cached_property
    def deployed(self) -> nn.Module:
        """The unpruned network in the form that its pruned ones have, which is what costs are measured on."""
        if self.remove is prune:
            return self.original
        return rewrite(self.original, self.unpruned, self.unpruned.all_channels())


@dataclass(frozen=True)
class Problem:
    """A network and a budget.

    Attributes:
        prunable: The network.
        cost: What the budget counts, of widths of the unpruned network's groups; with a `name` and a `unit`.
        budget: Fraction of the unpruned network's cost that may stay.
    """

    prunable: Prunable
    cost: Any
    budget: float

    @property
    def topology(self) -> Topology:
        """The groups that are pruned now."""
        return self.prunable.topology

    @property
    def full_cost(self) -> int:
        """What the unpruned network costs."""
        return int(self.cost(self.prunable.unpruned.full_widths()))

    def cost_of(self, widths: Tensor) -> Tensor:
        """Cost of widths [..., G] of the groups that are pruned now, [...]."""
        return self.cost(widths_among([group.name for group in self.topology.groups], widths, self.prunable.unpruned))

    def environment(self, max_steps: int) -> PruningEnv:
        """Where agents prune it; rewards are taken once its `evaluate` is set.

        Args:
            max_steps: Actions an episode may take.

        Raises:
            UserError: If no widths are within the budget.
        """
        return PruningEnv(self.topology, self.cost_of, self.budget, _not_begun, max_steps, self.full_cost)


def make_prunable(original: nn.Module, example: Inputs, settings: SearchSettings) -> Prunable:
    """Traces a network, and finds out how its channels are removed.

    A forward with sizes of its own that the trace cannot show is found now, not after the search.

    Args:
        original: The unpruned network.
        example: A batch of its inputs.
        settings: For what must stay whole.

    Raises:
        UserError: If nothing can be pruned.
    """
    unpruned, remove = provable(original, trace(original, example, **_limits(settings)))
    return Prunable(original, unpruned, original, unpruned, remove)


def prune_again(whole: Prunable, pruned: nn.Module, earlier: PruningPlan, settings: SearchSettings) -> Prunable:
    """Traces what an earlier stage left of a network.

    Args:
        whole: The unpruned network.
        pruned: What is left of it.
        earlier: The plan of that stage.
        settings: For what must stay whole.

    Raises:
        UserError: If it has other groups now.
    """
    topology = trace(pruned, whole.unpruned.program.example, **_limits(settings))
    planned = {group.name for group in earlier.groups}
    names = [group.name for group in _named_as_before(topology, whole.unpruned, earlier)]
    topology = topology.without([i for i, name in enumerate(names) if name not in planned], "not planned")
    topology, remove = provable(pruned, topology)
    topology.groups = _named_as_before(topology, whole.unpruned, earlier)
    earlier.then(make_plan(topology, topology.all_channels()))
    return Prunable(whole.original, whole.unpruned, pruned, topology, remove)


def check_stages(whole: Prunable, settings: SearchSettings) -> None:
    """Finds out now, not after a stage, whether a network can be pruned again.

    Raises:
        UserError: If it would have other groups then.
    """
    topology = whole.unpruned
    half = [range(max(1, group.width // 2)) for group in topology.groups]
    smaller = whole.remove(whole.original, topology, half)
    again = trace(smaller, topology.program.example, exclude=settings.exclude, keep_ends=settings.keep_ends)
    make_plan(topology, half).then(make_plan(again, again.all_channels()))


def _named_as_before(topology: Topology, unpruned: Topology, earlier: PruningPlan) -> list[ChannelGroup]:
    """The groups of a pruned network under the names that the same channels have in the unpruned one.

    A name tells the first channel of its group, which may be one that is gone.
    """
    kept = {group.name: group.kept for group in earlier.groups}
    mask = unpruned.keep_mask([kept.get(group.name, range(group.width)) for group in unpruned.groups])
    mask = torch.cat([mask, mask.new_ones(1)])  # the last is for slot −1, all that stays
    groups = []
    for index, group in enumerate(topology.groups):
        before: set[str] = set()
        for member in group.members:
            slots = unpruned.slots.get((member.parameter, member.dimension))
            if slots is not None:
                now = topology.slots[member.parameter, member.dimension]
                mine = (now >= 0) & (topology.group_of_slot[now] == index)
                old = slots[mask[slots]]
                if len(old) == len(mine):
                    owners = unpruned.group_of_slot[old[mine & (old >= 0)]].unique().tolist()
                    before |= {unpruned.groups[owner].name for owner in owners}
        groups.append(replace(group, name=before.pop()) if len(before) == 1 else group)
    return groups


def _not_begun(widths: Tensor) -> float:
    raise AssertionError("rewards are taken once the search has begun")


def _limits(settings: SearchSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("divisor", "min_keep", "exclude", "keep_ends")}
