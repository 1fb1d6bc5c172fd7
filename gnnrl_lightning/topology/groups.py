"""Channel groups: sets of channels that can only be removed together, one decision of the agent each."""

import math
from dataclasses import dataclass

import numpy as np

from gnnrl_lightning.topology.labels import LOCKED, Labels


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
        lowest = math.ceil(max(self.min_width, 1) / self.divisor) * self.divisor
        return sorted({*range(lowest, self.width, self.divisor), self.width})


def collect(labels: Labels, roots: np.ndarray, divisor: int, min_keep: float) -> tuple[list[ChannelGroup], np.ndarray]:
    """Label classes that run through the same parameter dimensions, equally often, form one group.

    Args:
        labels: The propagated labels.
        roots: The class of each label, [labels].
        divisor: See `ChannelGroup`.
        min_keep: Fraction of its channels that each group keeps at least.

    Returns:
        The groups, and the slot of each class, [classes], −1 where it belongs to none.
    """
    signature: dict[int, list[tuple[str, int, int]]] = {}
    for (name, dimension), vector in labels.dimensions.items():
        for root, count in zip(*np.unique(roots[vector.numpy()], return_counts=True), strict=True):
            signature.setdefault(int(root), []).append((name, dimension, int(count)))
    signature.pop(int(roots[LOCKED]), None)
    # Classes in the order of their first label, so that groups and slots follow the network.
    first = {int(root): index for index, root in reversed(list(enumerate(roots)))}
    by_members: dict[tuple[tuple[str, int, int], ...], list[int]] = {}
    for root in sorted(signature, key=first.__getitem__):
        by_members.setdefault(tuple(signature[root]), []).append(root)
    slot_of_root = np.full(int(roots.max()) + 1, -1, dtype=np.int64)
    groups: list[ChannelGroup] = []
    names: dict[str, int] = {}
    start = 0
    for members, classes in by_members.items():
        slot_of_root[classes] = np.arange(start, start + len(classes))
        start += len(classes)
        name = _name(members)
        names[name] = names.get(name, 0) + 1
        groups.append(
            ChannelGroup(
                name if names[name] == 1 else f"{name}#{names[name]}",
                len(classes),
                tuple(Member(*member) for member in members),
                max(1, math.ceil(min_keep * len(classes))),
                divisor,
            )
        )
    return groups, slot_of_root


def _name(members: tuple[tuple[str, int, int], ...]) -> str:
    producers = [name for name, dimension, _ in members if dimension == 0]
    return (producers or [members[0][0]])[0].rpartition(".")[0]
