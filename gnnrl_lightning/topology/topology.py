"""A network's topology: its channel groups, the positions that they own, and the closed-form cost of any widths."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from gnnrl_lightning.core.numbers import aligned, percent
from gnnrl_lightning.topology.closed_form import Count, Products
from gnnrl_lightning.topology.groups import collect
from gnnrl_lightning.topology.label_vectors import LOCKED, compact, distinct, varies
from gnnrl_lightning.topology.labels import Labels
from gnnrl_lightning.topology.program import Program
from gnnrl_lightning.topology.values import Product, Size


class Topology:
    """A network's channel groups, the positions that they own, and the closed-form cost of any widths.

    Every channel of every group has a *slot*, numbered group by group; `slots` maps positions to them.

    Attributes:
        program: The traced network.
        labels: Labels of all operations, for the hierarchical graph.
        exclude: Patterns of the layers that stay whole.
        groups: What can be pruned, in the order of the network.
        folds: Tensors computed from parameters alone that plans cut; see `Labels.fold`.
        slots: (parameter, dimension) to the slot of each position, −1 where it must stay; [positions].
        sizes: Module attributes that count channels, with the slots they count.
        locked: (reason, number of channels) for what cannot be pruned.
        operations: Names of the operations that cost, in the order of `operation_macs`.
    """

    def __init__(
        self,
        program: Program,
        labels: Labels,
        divisor: int = 1,
        min_keep: float = 0.0,
        exclude: Sequence[str] = (),
        keep_ends: bool = False,
        whole: Sequence[str] = (),
    ):
        self.program = program
        self.labels = labels
        self.exclude, self.keep_ends, self.whole = tuple(exclude), keep_ends, tuple(whole)
        self._divisor, self._min_keep = divisor, min_keep
        self._classes, locked = labels.classes()
        self.locked = [(reason, len(channels)) for reason, channels in locked.items()]
        self._channels_locked = len(set().union(*(channels.tolist() for channels in locked.values())))
        self.groups, self._slot_of_class = collect(labels, self._classes, divisor, min_keep)
        self.group_of_slot = torch.repeat_interleave(torch.arange(len(self.groups)), self.full_widths())
        self.slots = {key: self.slots_of(vector) for key, vector in labels.dimensions.items()}
        self.folds = frozenset(n for (n, _), slots in self.slots.items() if n in labels.folded and (slots >= 0).any())
        self.sizes: list[tuple[Size, Tensor]] = [(size, self.slots_of(size.labels)) for size in labels.sizes]
        self.operations = tuple(product.node for product in labels.products)
        self._macs = self._products((p.factor, self.operands(p)) for p in labels.products)
        self._parameters = self._products((1, self.weight(name)) for name in sorted(self._counted()))
        self._unpruned = sum(labels.shapes[name].numel() for name in program.parameters - program.unused)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it is traced from, since graphs cannot be pickled."""
        limits = (self._divisor, self._min_keep, self.exclude, self.keep_ends, self.whole)
        from gnnrl_lightning.topology.tracing import traced_again

        return traced_again, (self.program.modules[""], self.program.example, *limits)

    def __repr__(self) -> str:
        channels, locked = int(self.full_widths().sum()), self._channels_locked
        return (
            f"Topology of {type(self.program.modules['']).__name__}: {len(self.groups)} groups, {channels} channels to "
            f"prune, {locked} locked; {self.macs() / 1e6:.1f} MMACs, {self.parameters() / 1e6:.2f} M parameters"
        )

    def summary(self) -> str:
        """What can be pruned, who is pruned with whom, and what cannot be, as a table in text.

        The share of a group is the part of all MACs that goes if it keeps only its least channels.
        """
        full, least, whole = self.full_widths(), self.min_widths(), self.macs()
        rows = [("group", "width", "least", "share of MACs", "runs through")]
        for index, group in enumerate(self.groups):
            widths = full.clone()
            widths[index] = least[index]
            share = percent(1 - int(self.macs(widths)) / whole)
            layers = list(dict.fromkeys(member.parameter.rpartition(".")[0] for member in group.members))
            others = [layer for layer in layers if layer != group.name]
            through = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
            rows.append((group.name, str(group.width), str(int(least[index])), share, through))
        locked = [f"locked: {number} channels, {reason}" for reason, number in self.locked]
        return "\n".join([repr(self), *aligned(rows), *locked])

    def without(self, groups: Sequence[int], reason: str) -> "Topology":
        """The same network with some of its groups locked."""
        labels = replace(self.labels, locks=list(self.labels.locks))
        for (name, dimension), slots in self.slots.items():
            members = torch.isin(self.group_of_slot[slots], torch.tensor(groups)) & (slots >= 0)
            labels.lock(labels.dimensions[name, dimension][members], reason)
        whole = (*self.whole, *(self.groups[index].name for index in groups))
        return Topology(self.program, labels, self._divisor, self._min_keep, self.exclude, self.keep_ends, whole)

    def full_widths(self) -> Tensor:
        """Widths of the unpruned network, [G]."""
        return torch.tensor([group.width for group in self.groups], dtype=torch.long)

    def all_channels(self) -> list[range]:
        """What each group keeps where nothing is removed."""
        return [range(group.width) for group in self.groups]

    def min_widths(self) -> Tensor:
        """The smallest widths allowed, [G]."""
        return torch.tensor([group.widths()[0] for group in self.groups], dtype=torch.long)

    def operation_macs(self, widths: Tensor | None = None) -> Tensor:
        """Multiply-accumulates of each operation for one image, [..., operations] for widths [..., G]."""
        return self._macs(self.full_widths() if widths is None else torch.as_tensor(widths))

    @overload
    def macs(self, widths: None = None) -> int: ...
    @overload
    def macs(self, widths: Tensor) -> Tensor: ...
    def macs(self, widths: Tensor | None = None) -> int | Tensor:
        """Multiply-accumulates for one image: convolutions, linear layers and matrix products.

        Equal to `torch.utils.flop_counter.FlopCounterMode` / 2 of the network that is really pruned so.

        Args:
            widths: Channels kept, [..., G]; the whole network where None.

        Returns:
            Integers, [...]; one number for the whole network.
        """
        if widths is None:
            return int(self.macs(self.full_widths()))
        return self.operation_macs(widths).sum(-1).round().long()

    @overload
    def parameters(self, widths: None = None) -> int: ...
    @overload
    def parameters(self, widths: Tensor) -> Tensor: ...
    def parameters(self, widths: Tensor | None = None) -> int | Tensor:
        """Number of parameters that the network computes with; shared ones count once. Otherwise as `macs`.

        Of a pruned network those that are computed from others (folded) count as they are then, of the whole one not.
        """
        if widths is None:
            return int(self.parameters(self.full_widths()))
        widths = torch.as_tensor(widths)
        whole = (widths == self.full_widths()).all(-1)
        return torch.where(whole, self._unpruned, self._parameters(widths).sum(-1).round().long())

    def channels(self, node: str, dimension: int = 1) -> Count:
        """How an operation's channel count follows the widths."""
        labels = self.labels.outputs[node]
        if labels.dim() <= dimension:
            return self._count(labels.flatten())
        vector = compact(labels).movedim(dimension, 0).flatten(1)[:, 0]
        return self._count(vector.expand(labels.shape[dimension]))

    def lengths(self, node: str) -> list[Count]:
        """How the size of an operation's result follows the widths: one count for each dimension with channels."""
        labels = self.labels.outputs.get(node)
        if not isinstance(labels, Tensor):
            return []
        return [self.channels(node, d) for d in range(labels.dim()) if varies(labels, d)]

    def weight(self, name: str) -> list[Count]:
        """How the dimensions of a parameter or buffer follow the widths."""
        return [self._along(name, d) for d in range(len(self.labels.shapes[name]))]

    def operands(self, product: Product) -> list[Count]:
        """How an operation's multiply-accumulates follow the widths: output and input channels, where it has any."""
        return [self._count(vector) for vector in (product.rows, product.columns) if vector is not None]

    def keep_mask(self, kept: Sequence[Sequence[int]]) -> Tensor:
        """One flag a slot from the kept channels of each group, [slots]."""
        mask = torch.zeros(len(self.group_of_slot), dtype=torch.bool)
        start = 0
        for group, channels in zip(self.groups, kept, strict=True):
            mask[start + torch.as_tensor(channels, dtype=torch.long)] = True
            start += group.width
        return mask

    def stays(self, vector: Tensor, mask: Tensor) -> Tensor:
        """Which labels stay; of size 1 where channels do not differ along a dimension."""
        slots = self.slots_of(distinct(vector))
        return (slots < 0) | mask[slots]

    def positions(self, labels: Tensor, dimension: int, mask: Tensor) -> Tensor:
        """Which positions along a dimension of an activation stay, [positions]."""
        return self.stays(labels, mask).movedim(dimension, 0).flatten(1).any(1).expand(labels.shape[dimension])

    def slots_of(self, vector: Tensor) -> Tensor:
        """The slot of each label, −1 where it must stay; in the shape of `vector`."""
        return torch.from_numpy(self._slot_of_class[self._classes[vector.numpy()]])

    def _counted(self) -> set[str]:
        """Names of the network's parameters: what is folded and shrinks stands for those that it is computed from."""
        # The output, and what is changed in place and not read by name.
        ends = [node for node in self.program.graph.nodes if not node.users and node.op != "placeholder"]
        folded = {self.labels.folded[name] for name in self.folds}
        folded |= {node for name in self.folds for node in self.labels.repeats.get(name, ())}
        read = self.program.upstream(ends, without=folded)
        left = self.program.tensors(read)
        folds = {name for name in self.folds if self.labels.sources(name) & self.program.parameters}
        return (left & self.program.parameters) | folds

    def _count(self, vector: Tensor) -> Count:
        slots = self.slots_of(vector)
        owned = torch.bincount(self.group_of_slot[slots[slots >= 0]], minlength=len(self.groups))
        # Every channel of a group has equally many positions here: that is what makes it a group.
        return len(slots) - int(owned.sum()), owned // self.full_widths().clamp(min=1)

    def _along(self, name: str, dimension: int) -> Count:
        """The length of a parameter's dimension."""
        vector = self.labels.dimensions.get((name, dimension))
        if vector is None:
            vector = torch.full((self.labels.shapes[name][dimension],), LOCKED)
        return self._count(vector if vector.dim() == 1 else vector[0])

    def _products(self, products: Iterable[tuple[int, list[Count]]]) -> Products:
        factors, counts = [], []
        for factor, operands in products:
            factors.append(factor)
            counts.append(operands)
        return Products(factors, counts, len(self.groups))
