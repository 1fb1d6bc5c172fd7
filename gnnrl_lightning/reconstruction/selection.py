"""Which channels of a group go first, and what its readers lose at each width.

Backward elimination: with G the moments of what a reader reads and W refitted to the columns that are left, taking away
channel c costs tr(H_cc⁻¹ M_cc), where H = G⁻¹ and M = Wᵀ S W (the optimal brain surgeon, Hassibi and Stork 1993, on
S-weighted outputs). The costs of all readers of a group add up, the cheapest channel goes, H and M follow by a rank-k
update, and so on: a nested order. With G permuted into that order and G = L Lᵀ, the error at width m is
Σ_{j > m} L_jᵀ M L_j, exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gnnrl_lightning.reconstruction.moments import Moments, factored, ridged
from gnnrl_lightning.reconstruction.statistics import Statistics
from gnnrl_lightning.topology import Topology

_EXACT = 10**8
"""Up to this many elements touched, channels go one by one; larger groups lose them in rounds."""
_ROUNDS = 12


@dataclass
class _Refitted:
    """What one reader says of one group if its weights are refitted to what stays.

    Attributes:
        inverse: H of the group's columns, [blocks, D, D].
        energy: M = Wᵀ S W of these columns, [blocks, D, D].
        size: Columns of a channel.
    """

    inverse: Tensor
    energy: Tensor
    size: int

    @property
    def elements(self) -> int:
        """Elements of a block that the removal of a channel touches."""
        return self.inverse[0].numel()

    def of(self, channels: Tensor) -> "_Refitted":
        """The same of some of its channels, in matrices of its own: of those that are left, if others are gone."""
        index = self._index(channels)
        inverse, energy = (matrix[:, index][:, :, index] for matrix in (self.inverse, self.energy))
        return _Refitted(inverse, energy, self.size)

    def costs(self, left: Tensor) -> Tensor:
        """What it costs to take each channel away, of those that are left, [width]."""
        own, energy = self._channels(self.inverse), self._channels(self.energy)
        own = torch.where(left.to(own.device).view(1, -1, 1, 1), own, torch.eye(self.size).to(own))
        return torch.linalg.solve(own, energy).diagonal(dim1=2, dim2=3).sum((0, 2)).cpu()

    def remove(self, channels: Tensor) -> None:
        """Refits what is left: rank-k updates of H and of M."""
        index = self._index(channels)
        across = self.inverse[:, index]  # [blocks, k, D]
        moved = torch.linalg.solve(across[:, :, index], across)
        rows = self.energy[:, index]
        self.energy -= moved.mT @ rows + rows.mT @ moved - moved.mT @ rows[:, :, index] @ moved
        self.inverse -= across.mT @ moved
        for matrix in (self.inverse, self.energy):
            matrix[:, index] = 0
            matrix[:, :, index] = 0

    def curve(self, order: Tensor) -> Tensor:
        """The error at widths 0 to all, when channels go in this order, [width + 1]."""
        sorted_ = self.of(order.flip(0))
        # The moments of the group's columns, given all others that the reader reads, which stay.
        factor = factored(torch.linalg.inv(sorted_.inverse))
        errors = ((sorted_.energy @ factor) * factor).sum(1)
        each = errors.unflatten(1, (len(order), self.size)).sum((0, 2))
        return _from_tail(each)

    def _index(self, channels: Tensor) -> Tensor:
        columns = channels.unsqueeze(1) * self.size + torch.arange(self.size)
        return columns.flatten().to(self.inverse.device)

    def _channels(self, matrix: Tensor) -> Tensor:
        """The square of each channel on the diagonal of [blocks, D, D], [blocks, width, size, size]."""
        split = (matrix.shape[-1] // self.size, self.size)
        return matrix.unflatten(2, split).unflatten(1, split).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


@dataclass
class _AsIs:
    """What one reader says of one group if its weights stay as they are.

    Attributes:
        products: Σ over columns of G ∘ M of each pair of channels: the error is its sum over those that are gone,
            [width, width].
        beside: The sum of each channel's products with those that are gone, [width].
    """

    products: Tensor
    beside: Tensor

    @property
    def elements(self) -> int:
        """Elements that the removal of a channel touches."""
        return self.products.numel()

    def of(self, channels: Tensor) -> "_AsIs":
        """The same of some of its channels: of those that are left, if others are gone."""
        return _AsIs(self.products[channels][:, channels], self.beside[channels])

    def costs(self, left: Tensor) -> Tensor:
        """What it costs to take each channel away, beside those that are gone, [width]."""
        return self.products.diagonal() + 2 * self.beside

    def remove(self, channels: Tensor) -> None:
        """What is left loses the more for it."""
        self.beside += self.products[:, channels].sum(1)

    def curve(self, order: Tensor) -> Tensor:
        """The error at widths 0 to all, when channels go in this order, [width + 1]."""
        gone_first = self.products[order][:, order]
        squares = gone_first.cumsum(0).cumsum(1).diagonal()
        return torch.cat([squares.flip(0), squares.new_zeros(1)])


class Selection:
    """Judges the channels of every group by what their readers lose.

    Args:
        statistics: Of the unpruned network.
        topology: Its channel groups.
        refitted: Whether weights are refitted to what stays; else every reader is judged with its weights as they are.
    """

    def __init__(self, statistics: Statistics, topology: Topology, refitted: bool = True):
        self.topology = topology
        self.gates = statistics.gates.split(topology.full_widths().tolist())
        self._parts: list[list[_Refitted | _AsIs]] = [[] for _ in topology.groups]
        firsts = topology.full_widths().cumsum(0) - topology.full_widths()
        for moments in statistics.moments:
            self._add(moments, statistics.tensors[moments.reader.weight], firsts, refitted)

    def _add(self, moments: Moments, weight: Tensor, firsts: Tensor, refitted: bool) -> None:
        reader = moments.reader
        slots = reader.slots
        owner = torch.where(slots < 0, -1, self.topology.group_of_slot[slots])
        matrix = reader.layout.matrix(weight).double().flatten(2)
        felt = (moments.sensitivity @ matrix).unflatten(2, (reader.channels, reader.taps))
        felt = moments.flat(felt)  # where mixed, the same S for every tap
        energy = felt.mT @ felt
        inverse = None
        if refitted and not moments.tells:
            energy = energy * moments.share
        elif refitted and moments.ridge is not None:
            factor = factored(ridged(moments.gram, moments.gram, moments.ridge))
            inverse, energy = torch.cholesky_inverse(factor), energy * moments.optimism
        for group in owner[owner >= 0].unique().tolist():
            rows = [(owner[b] == group).nonzero().flatten() for b in range(reader.blocks)]
            rows = [row[slots[b, row].argsort(stable=True)] for b, row in enumerate(rows)]
            index = moments.columns(torch.stack(rows)).to(weight.device)  # [blocks, D of the group]
            width = self.topology.groups[group].width
            size = index.shape[1] // width
            own = _square(energy, index)
            if inverse is not None:
                self._parts[group].append(_Refitted(_square(inverse, index), own, size))
            else:
                pairs = (_square(moments.gram, index) * own).sum(0)
                products = pairs.view(width, size, width, size).sum((1, 3)).cpu()
                self._parts[group].append(_AsIs(products, torch.zeros_like(products[0])))

    def order(self, group: int) -> Tensor:
        """The channels of a group as they go, the first one first, [width]."""
        width = self.topology.groups[group].width
        size = max((part.elements for part in self._parts[group]), default=0)
        rounds = width if width * size <= _EXACT else _ROUNDS
        names = torch.arange(width)  # of the channels that the parts are about
        parts, gates = [part.of(names) for part in self._parts[group]], self.gates[group]
        left = torch.ones(width, dtype=torch.bool)
        gone: list[int] = []
        for number in range(rounds):
            costs = sum((part.costs(left) for part in parts), gates)
            costs = torch.where(left, costs, torch.inf)
            count = -(-(width - len(gone)) // (rounds - number))
            chosen = costs.argsort(stable=True)[:count]
            gone += names[chosen].tolist()
            left[chosen] = False
            if not left.any():
                break
            for part in parts:
                part.remove(chosen)
            if 2 * left.sum() <= len(left):  # smaller matrices go faster
                kept = left.nonzero().flatten()
                parts, gates = [part.of(kept) for part in parts], gates[kept]
                names, left = names[kept], left[kept]
        return torch.tensor(gone)

    def curve(self, group: int, order: Tensor) -> Tensor:
        """What the readers of a group lose together at widths 0 to all if channels go in this order, [width + 1]."""
        gates = _from_tail(self.gates[group][order.flip(0)])
        total = sum((part.curve(order).cpu() for part in self._parts[group]), gates)
        # To remove a channel never helps; what rounding says otherwise is taken out.
        return total.clamp(min=0).flip(0).cummax(0).values.flip(0)


def _from_tail(each: Tensor) -> Tensor:
    """The error at widths 0 to all from what each channel adds, the last to go first, [width + 1]."""
    return torch.cat([each.flip(0).cumsum(0).flip(0), each.new_zeros(1)])


def _square(matrix: Tensor, index: Tensor) -> Tensor:
    """Rows and columns [blocks, k] of [blocks, D, D], [blocks, k, k]."""
    rows = matrix.gather(1, index.unsqueeze(2).expand(-1, -1, matrix.shape[2]))
    return rows.gather(2, index.unsqueeze(1).expand(-1, index.shape[1], -1))
