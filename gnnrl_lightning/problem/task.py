"""What agents and importances may know of a search: the groups, the cost, the budget, and what was found so far."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gnnrl_lightning.reconstruction.reconstruction import Reconstruction
from gnnrl_lightning.topology import Topology

Cost = Callable[[Tensor], Tensor]
"""Cost of widths, [..., G] to [...]."""


@dataclass(frozen=True)
class Task:
    """All that agents and importances may know of a search; of images and networks they see only what they are given.

    Attributes:
        topology: The network's channel groups.
        cost: What the budget counts.
        allowed: The most that a network may cost.
        uniform: The widths within the budget that remove the same fraction of every group, [G].
        scores: The importance of every channel, one tensor [width] a group; known when the search begins.
        reconstruction: What is known in closed form of the network, taken when first asked for; None without images.
        plans: The few widths [G] that the error curves suggest, by name; None where the search begins elsewhere.
        episodes: How many networks may be proposed, by each rank where there are several; None where nobody says.
    """

    topology: Topology
    cost: Cost
    allowed: int
    uniform: Tensor
    scores: Callable[[], list[Tensor]]
    episodes: int | None = None
    reconstruction: Reconstruction | None = None
    plans: Callable[[], dict[str, Tensor]] | None = None
