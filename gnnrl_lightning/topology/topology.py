"""A network's topology: its channel groups, the positions that they own, and the closed-form cost of any widths."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gnnrl_lightning.topology.groups import collect
from gnnrl_lightning.topology.labels import LOCKED, Labels, Product, Size, propagate
from gnnrl_lightning.topology.trace import Program, export


@dataclass(frozen=True)
class _Term:
    """MACs of one operation: factor · (rows + row_counts·w) · (columns + column_counts·w)."""

    node: str
    factor: int
    rows: int
    row_counts: Tensor
    columns: int
    column_counts: Tensor


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
        roots = labels.roots()
        locked = roots[LOCKED]
        self.groups, self._slot_of_root = collect(labels, roots, divisor, min_keep)
        self.slots = {key: self._slots(vector, roots, locked) for key, vector in labels.dimensions.items()}
        self.sizes: list[tuple[Size, Tensor]] = [
            (size, self._slots(size.labels, roots, locked)) for size in labels.sizes
        ]
        self.locked = [(reason, len(np.unique(roots[vector.numpy()]))) for reason, vector in labels.locks]
        self.group_of_slot = torch.repeat_interleave(
            torch.arange(len(self.groups)), torch.tensor([g.width for g in self.groups], dtype=torch.long)
        )
        self._roots = roots
        self._terms = [self._term(product) for product in labels.products]
        if self._terms:
            self._factors = torch.tensor([t.factor for t in self._terms], dtype=torch.float64)
            self._rows = torch.tensor([t.rows for t in self._terms], dtype=torch.float64)
            self._columns = torch.tensor([t.columns for t in self._terms], dtype=torch.float64)
            self._row_counts = torch.stack([t.row_counts for t in self._terms]).double()
            self._column_counts = torch.stack([t.column_counts for t in self._terms]).double()

    def full_widths(self) -> Tensor:
        """Widths of the unpruned network, [G]."""
        return torch.tensor([group.width for group in self.groups], dtype=torch.long)

    def min_widths(self) -> Tensor:
        """The smallest widths allowed, [G]."""
        return torch.tensor([group.widths()[0] for group in self.groups], dtype=torch.long)

    def operation_macs(self, widths: Tensor | None = None) -> Tensor:
        """Multiply-accumulates of each operation for one image, [..., operations] for widths [..., G]."""
        w = (self.full_widths() if widths is None else widths).double()
        rows = self._rows + w @ self._row_counts.T
        columns = self._columns + w @ self._column_counts.T
        return self._factors * rows * columns

    def macs(self, widths: Tensor | None = None) -> Tensor:
        """Multiply-accumulates for one image: convolutions, linear layers and matrix products.

        Equal to `torch.utils.flop_counter.FlopCounterMode` / 2 of the network that is really pruned so.

        Args:
            widths: Channels kept, [..., G]; the whole network where None.

        Returns:
            Integers, [...].
        """
        return self.operation_macs(widths).sum(-1).round().long()

    def parameters(self, widths: Tensor | None = None) -> Tensor:
        """Number of parameters, [...] for widths [..., G]."""
        w = (self.full_widths() if widths is None else widths).double()
        total = torch.zeros(w.shape[:-1], dtype=torch.float64)
        for name, shape in self.program.shapes.items():
            if name not in self._parameter_names:
                continue
            count = torch.ones_like(total)
            for dimension, size in enumerate(shape):
                fixed, counts = self._counts(self.slots.get((name, dimension)), size)
                count = count * (fixed + w @ counts.double())
            total += count
        return total.round().long()

    @property
    def _parameter_names(self) -> set[str]:
        modules = self.program.modules
        return {
            f"{path}.{name}" if path else name
            for path, module in modules.items()
            for name in module._parameters
            if module._parameters[name] is not None
        }

    def operation_groups(self) -> list[tuple[str, Tensor, Tensor]]:
        """For each operation that costs: its node, and how many positions each group has in its rows and columns."""
        return [(t.node, t.row_counts, t.column_counts) for t in self._terms]

    def channels(self, node: str, dimension: int = 1) -> tuple[int, Tensor]:
        """How an operation's channel count follows the widths: (fixed, counts [G]); channels = fixed + counts·w."""
        labels = self.labels.outputs[node]
        vector = labels.movedim(dimension, 0).flatten(1)[:, 0] if labels.dim() > dimension else labels.flatten()
        return self._counts(self._slots(vector, self._roots, self._roots[LOCKED]), vector.numel())

    def keep_mask(self, kept: Sequence[Sequence[int]]) -> Tensor:
        """One flag a slot from the kept channels of each group, [slots]."""
        mask = torch.zeros(len(self.group_of_slot), dtype=torch.bool)
        start = 0
        for group, channels in zip(self.groups, kept, strict=True):
            mask[start + torch.as_tensor(channels, dtype=torch.long)] = True
            start += group.width
        return mask

    def _slots(self, vector: Tensor, roots: np.ndarray, locked: int) -> Tensor:
        at = roots[vector.numpy()]
        return torch.from_numpy(np.where(at == locked, -1, self._slot_of_root[at]))

    def _counts(self, slots: Tensor | None, size: int) -> tuple[int, Tensor]:
        counts = torch.zeros(len(self.groups), dtype=torch.long)
        if slots is None:
            return size, counts
        owned = self.group_of_slot[slots[slots >= 0]]
        counts = torch.bincount(owned, minlength=len(self.groups))
        return size - owned.numel(), counts // self.full_widths().clamp(min=1)

    def _term(self, product: Product) -> _Term:
        none = torch.zeros(len(self.groups), dtype=torch.long)
        if product.rows is None or product.columns is None:
            return _Term(product.node, product.factor, 1, none, 1, none)
        locked = self._roots[LOCKED]
        rows = self._counts(self._slots(product.rows, self._roots, locked), product.rows.numel())
        columns = self._counts(self._slots(product.columns, self._roots, locked), product.columns.numel())
        return _Term(product.node, product.factor, *rows, *columns)


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
        ValueError: If the network cannot be traced or nothing in it can be pruned.
    """
    program = export(model, example_input)
    topology = Topology(program, propagate(program), divisor, min_keep, exclude)
    if not topology.groups:
        reasons = "; ".join(dict.fromkeys(reason for reason, _ in topology.locked))
        raise ValueError(f"nothing in {type(model).__name__} can be pruned: {reasons}")
    return topology


def _exclude(labels: Labels, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        matched = [key for key in labels.dimensions if re.search(pattern, key[0])]
        if not matched:
            raise ValueError(f"exclude={pattern!r} matches no parameter of the network; see its named_parameters()")
        for name, dimension in matched:
            labels.lock(labels.dimensions[name, dimension], f"exclude={pattern}")
