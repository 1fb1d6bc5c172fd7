"""A network's topology: its channel groups, the positions that they own, and the closed-form cost of any widths."""

import re
from collections.abc import Iterable, Sequence
from typing import overload

import torch
from torch import Tensor, nn

from gnnrl_lightning.topology.groups import collect
from gnnrl_lightning.topology.labels import LOCKED, Labels, Product, Size, compact
from gnnrl_lightning.topology.rules import propagate
from gnnrl_lightning.topology.trace import Program, export

Count = tuple[int, Tensor]
"""How a number of channels follows the widths: (fixed, counts [G]) stands for fixed + counts·w."""


class _Products:
    """K products of D counts each, as functions of the widths: factor · ∏ (fixed + counts·w).

    Exact, because doubles hold integers below 2⁵³.
    """

    def __init__(self, factors: Sequence[int], counts: Sequence[Sequence[Count]], groups: int):
        depth = max((len(row) for row in counts), default=0)
        one: Count = (1, torch.zeros(groups, dtype=torch.long))
        rows = [[*row, *[one] * (depth - len(row))] for row in counts]
        self.factors = torch.tensor(factors, dtype=torch.float64)  # [K]
        self.fixed = torch.tensor([[fixed for fixed, _ in row] for row in rows], dtype=torch.float64)  # [K, D]
        flat = [vector for row in rows for _, vector in row]
        self.counts = torch.stack(flat).double() if flat else torch.zeros(0, groups, dtype=torch.float64)  # [K·D, G]

    def __call__(self, widths: Tensor) -> Tensor:
        """Values at widths [..., G], [..., K]."""
        counts = (widths.double() @ self.counts.T).view(*widths.shape[:-1], *self.fixed.shape)
        return self.factors * (self.fixed + counts).prod(-1)


class Topology:
    """A network's channel groups, the positions that they own, and the closed-form cost of any widths.

    Every channel of every group has a *slot*, numbered group by group; `slots` maps positions to them.

    Attributes:
        program: The traced network.
        labels: Labels of all operations, for the hierarchical graph.
        exclude: Patterns of the layers that stay whole.
        groups: What can be pruned, in the order of the network.
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
    ):
        self.program = program
        self.labels = labels
        self.exclude = tuple(exclude)
        _exclude(labels, exclude)
        self._classes, self.locked = labels.classes()
        self.groups, self._slot_of_class = collect(labels, self._classes, divisor, min_keep)
        self.group_of_slot = torch.repeat_interleave(torch.arange(len(self.groups)), self.full_widths())
        self.slots = {key: self._slots(vector) for key, vector in labels.dimensions.items()}
        self.sizes: list[tuple[Size, Tensor]] = [(size, self._slots(size.labels)) for size in labels.sizes]
        self.operations = tuple(product.node for product in labels.products)
        self._macs = self._products((p.factor, self._operands(p)) for p in labels.products)
        self._parameters = self._products(
            (1, [self._along(name, d) for d in range(len(program.shapes[name]))]) for name in sorted(program.parameters)
        )

    def full_widths(self) -> Tensor:
        """Widths of the unpruned network, [G]."""
        return torch.tensor([group.width for group in self.groups], dtype=torch.long)

    def min_widths(self) -> Tensor:
        """The smallest widths allowed, [G]."""
        return torch.tensor([group.widths()[0] for group in self.groups], dtype=torch.long)

    def operation_macs(self, widths: Tensor | None = None) -> Tensor:
        """Multiply-accumulates of each operation for one image, [..., operations] for widths [..., G]."""
        return self._macs(self.full_widths() if widths is None else widths)

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
        """Number of parameters; shared ones count once. Arguments and result as those of `macs`."""
        if widths is None:
            return int(self.parameters(self.full_widths()))
        return self._parameters(widths).sum(-1).round().long()

    def channels(self, node: str, dimension: int = 1) -> Count:
        """How an operation's channel count follows the widths."""
        labels = self.labels.outputs[node]
        if labels.dim() <= dimension:
            return self._count(labels.flatten())
        vector = compact(labels).movedim(dimension, 0).flatten(1)[:, 0]
        return self._count(vector.expand(labels.shape[dimension]))

    def keep_mask(self, kept: Sequence[Sequence[int]]) -> Tensor:
        """One flag a slot from the kept channels of each group, [slots]."""
        mask = torch.zeros(len(self.group_of_slot), dtype=torch.bool)
        start = 0
        for group, channels in zip(self.groups, kept, strict=True):
            mask[start + torch.as_tensor(channels, dtype=torch.long)] = True
            start += group.width
        return mask

    def _slots(self, vector: Tensor) -> Tensor:
        return torch.from_numpy(self._slot_of_class[self._classes[vector.numpy()]])

    def _count(self, vector: Tensor) -> Count:
        slots = self._slots(vector)
        owned = torch.bincount(self.group_of_slot[slots[slots >= 0]], minlength=len(self.groups))
        # Every channel of a group has equally many positions here: that is what makes it a group.
        return len(slots) - int(owned.sum()), owned // self.full_widths().clamp(min=1)

    def _along(self, name: str, dimension: int) -> Count:
        """The length of a parameter's dimension."""
        vector = self.labels.dimensions.get((name, dimension))
        return self._count(torch.full((self.program.shapes[name][dimension],), LOCKED) if vector is None else vector)

    def _operands(self, product: Product) -> list[Count]:
        return [self._count(vector) for vector in (product.rows, product.columns) if vector is not None]

    def _products(self, products: Iterable[tuple[int, list[Count]]]) -> _Products:
        factors, counts = [], []
        for factor, operands in products:
            factors.append(factor)
            counts.append(operands)
        return _Products(factors, counts, len(self.groups))


def trace(
    model: nn.Module,
    example_input: Tensor,
    *,
    divisor: int = 1,
    min_keep: float = 0.0,
    exclude: Sequence[str] = (),
) -> Topology:
    """Reads a network's topology: which channels can be removed, which only together, and what each costs.

    The model is not changed and no weight is read.

    Args:
        model: Any network that takes one tensor.
        example_input: A batch of inputs, [N, ...]; only its shape and type matter.
        divisor: Keep multiples of this many channels, 8 for tensor cores.
        min_keep: Fraction of its channels that each group keeps at least.
        exclude: Regular expressions; groups with a parameter whose name matches stay whole.

    Raises:
        ValueError: If an option is out of range, the network cannot be traced, or nothing in it can be pruned.
    """
    if divisor < 1:
        raise ValueError(f"divisor={divisor} must be at least 1; 1 keeps any number of channels.")
    if not 0 <= min_keep <= 1:
        raise ValueError(f"min_keep={min_keep} must be in [0, 1], the fraction of its channels that a group keeps.")
    program = export(model, example_input)
    topology = Topology(program, propagate(program), divisor, min_keep, exclude)
    if not topology.groups:
        reasons = "; ".join(dict.fromkeys(reason for reason, _ in topology.locked))
        raise ValueError(f"nothing in {type(model).__name__} can be pruned: {reasons}.")
    return topology


def _exclude(labels: Labels, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            matched = [name for name in labels.program.shapes if re.search(pattern, name)]
        except re.error as error:
            raise ValueError(f"exclude={pattern!r} is not a regular expression ({error}).") from error
        if not matched:
            raise ValueError(f"exclude={pattern!r} matches no parameter of the network; see its named_parameters().")
        for (name, _), vector in labels.dimensions.items():
            if name in matched:
                labels.lock(vector, f"exclude={pattern}")
