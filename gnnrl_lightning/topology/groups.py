"""Channel groups: sets of channels that can only be removed together, one decision of the agent each."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from gnnrl_lightning.topology.label_vectors import LOCKED
from gnnrl_lightning.topology.labels import Labels
from gnnrl_lightning.topology.program import Program


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter that a group runs through.

    `count` is how many positions a single channel of the group has there: 1 for a convolution, 49 for the linear layer
    behind a flattened 7×7 map.
    """

    parameter: str
    dimension: int
    count: int


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that can only be removed together: one decision of the agent.

    Attributes:
        name: The first layer that produces them.
        width: How many channels (each a set of tied positions) there are.
        members: Every parameter dimension that shrinks with the group.
        min_width: The fewest that must stay.
        divisor: The number kept is a multiple of this, or all.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    min_width: int = 1
    divisor: int = 1

    def widths(self) -> list[int]:
        """The numbers of channels that may be kept, ascending."""
        lowest = math.ceil(self.min_width / self.divisor) * self.divisor
        return sorted({*range(lowest, self.width, self.divisor), self.width})


def collect(
    labels: Labels, classes: np.ndarray, divisor: int, min_keep: float
) -> tuple[list[ChannelGroup], np.ndarray]:
    """Label classes that run through the same parameter dimensions, equally often, form one group.

    Args:
        labels: The propagated labels.
        classes: The class of each label, [labels].
        divisor: See `ChannelGroup`.
        min_keep: Fraction of its channels that each group keeps at least.

    Returns:
        The groups, and the slot of each class, [classes], −1 where it belongs to none.
    """
    uses: list[Member | None] = []
    uses_of: dict[int, list[int]] = defaultdict(list)

    def use(vector: Tensor, member: Callable[[int], Member | None]) -> None:
        numbers, counts = np.unique(classes[vector.numpy()], return_counts=True)
        for count in np.unique(counts).tolist():
            for number in numbers[counts == count].tolist():
                uses_of[number].append(len(uses))
            uses.append(member(count))

    for (name, dimension), vector in labels.dimensions.items():
        use(vector, partial(Member, name, dimension))
    prunable = uses_of.keys() - {int(classes[LOCKED])}
    # Where a product of activations reads only some of them, the cost of a channel depends on which it is.
    for product in labels.products:
        if product.rows is not None and product.columns is None:
            use(product.rows, lambda count: None)
    # In the order of each class's first label, so that groups and slots follow the network.
    numbers, firsts = np.unique(classes, return_index=True)
    first = dict(zip(numbers.tolist(), firsts.tolist(), strict=True))
    together: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number in sorted(prunable, key=first.__getitem__):
        together[tuple(uses_of[number])].append(number)
    slot_of_class = np.full(int(classes.max()) + 1, -1, dtype=np.int64)
    groups: list[ChannelGroup] = []
    start = 0
    for used, found in together.items():
        width = len(found)
        members = tuple(member for index in used if (member := uses[index]))
        slot_of_class[found] = np.arange(start, start + width)
        start += width
        name = _name(labels, members, classes, found)
        unique = f"{name}/{len(groups)}" if any(group.name == name for group in groups) else name
        # Rounded first, so that 0.07 · 100 = 7.000000000000001 asks for 7 channels.
        min_width = max(1, math.ceil(round(min_keep * width, 9)))
        groups.append(ChannelGroup(unique, width, members, min_width, divisor))
    return groups, slot_of_class


def _name(labels: Labels, members: tuple[Member, ...], classes: np.ndarray, found: list[int]) -> str:
    """Path of the first layer that produces the group, and which of its channels is the first of the group.

    So a group has the same name whatever else is locked: plans are located by names.
    """
    member = next((member for member in members if member.dimension == 0), members[0])
    parameter = member.parameter
    layer = parameter.rpartition(".")[0]
    if parameter in labels.folded:
        layer = Program.module_path(labels.folded[parameter]) or parameter
    positions = classes[labels.dimensions[parameter, member.dimension].numpy()].flatten()
    first = int(np.isin(positions, found).argmax())
    return f"{layer}#{first}" if first else layer
