"""Numbers of a traced program as expressions of the sizes of the activations before them."""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from gnnrl_lightning.topology.program import SIZE, Program

Values = tuple[int, ...]
"""The same number in every trace."""


class FixedSizeError(Exception):
    """Why a program holds for one size of images alone."""


class SizeExpressions:
    """The sizes of the activations so far that differ between traces, and operations that give them.

    Args:
        graph: Of the first trace, which gets these operations.

    Attributes:
        made: These operations.
    """

    def __init__(self, graph: fx.Graph):
        self.graph = graph
        self.made: list[fx.Node] = []
        self._known: dict[Values, tuple[fx.Node, int]] = {}
        self._own: dict[fx.Node, dict[Values, tuple[fx.Node, int]]] = {}

    def add(self, nodes: tuple[fx.Node, ...]) -> None:
        """Takes notice of the sizes of an operation's result, one node a trace."""
        results = [node.meta.get("val") for node in nodes]
        own: dict[Values, tuple[fx.Node, int]] = {}
        for d, values in enumerate(zip(*(x.shape for x in results if isinstance(x, Tensor)), strict=True)):
            # A symbol depends on the number of images.
            if not any(isinstance(value, torch.SymInt) for value in values) and len(set(values)) > 1:
                own[values] = nodes[0], d
        self._own[nodes[0]] = own
        self._known |= own

    def of(self, node: fx.Node, values: tuple[Any, ...]) -> Any:
        """What an argument of an operation is at any size, from what it is in each trace."""
        if all(type(value) in (int, float) for value in values) and len(set(values)) > 1:
            with self.graph.inserting_before(node):
                return self._expression(node, values)
        if not any(isinstance(value, fx.Node) for value in values) and any(value != values[0] for value in values):
            raise FixedSizeError(f"{Program.place(node)} has another {type(values[0]).__name__} at each size")
        return values[0]

    def _expression(self, node: fx.Node, values: tuple[Any, ...]) -> fx.Node:
        if all(float(value).is_integer() for value in values):
            found = self._integer(node, tuple(map(int, values)))
        else:  # the mean of a map as its sum times 1 / (h · w)
            parts = tuple(round(1 / value) if value else 0 for value in values)
            near = all(part and abs(part * value - 1) < 1e-9 for part, value in zip(parts, values, strict=True))
            found = self._integer(node, parts) if near else None
            found = found and self._call(operator.truediv, 1.0, found)
        if found is None:
            raise FixedSizeError(
                f"{Program.place(node)} has a number that follows none ({', '.join(map(str, values))})"
            )
        return found

    def _integer(self, node: fx.Node, values: Values) -> fx.Node | None:
        """The simplest expression for these values, of the operation's own operands if possible."""
        known: dict[Values, tuple[fx.Node, int]] = {}
        for source in node.all_input_nodes:
            known |= self._own.get(source, {})
        known |= {each: self._known[each] for each in reversed(self._known) if each not in known}
        if values in known:
            return self._size(*known[values])
        for each, place in known.items():
            times = _quotient(values, each)
            if times in known:
                return self._call(operator.mul, self._size(*place), self._size(*known[times]))
        if (multiple := self._multiple(known, values)) is not None:
            return multiple
        for each, place in known.items():
            parts = round(each[0] / values[0]) if values[0] else 0
            if parts > 1 and all(size // parts == value for size, value in zip(each, values, strict=True)):
                return self._call(operator.floordiv, self._size(*place), parts)
        for each, place in known.items():
            more = {value - size for value, size in zip(values, each, strict=True)}
            if len(more) == 1:
                return self._call(operator.add, self._size(*place), more.pop())
        for each, place in known.items():
            times = _quotient(values, each)
            rest = times and self._multiple(known, times)
            if rest:
                return self._call(operator.mul, self._size(*place), rest)
        return None

    def _multiple(self, known: dict[Values, tuple[fx.Node, int]], values: Values) -> fx.Node | None:
        """A multiple of a size."""
        for each, place in known.items():
            times = _quotient(values, each)
            if times and len(set(times)) == 1:
                return self._call(operator.mul, self._size(*place), times[0])
        return None

    def _size(self, node: fx.Node, dimension: int) -> fx.Node:
        return self._call(torch.ops.aten.sym_size.int, node, dimension)

    def _call(self, target: Callable[..., Any], *operands: Any) -> fx.Node:
        made = self.graph.call_function(target, operands)
        values = [x.meta["val"] if isinstance(x, fx.Node) else x for x in operands]
        made.meta["val"] = values[0].shape[values[1]] if isinstance(values[0], Tensor) else target(*values)
        made.meta[SIZE] = True
        self.made.append(made)
        return made


def _quotient(values: Values, divisors: Iterable[int]) -> Values | None:
    """Value by value, if none leaves a remainder."""
    pairs = list(zip(values, divisors, strict=True))
    return None if any(not b or a % b for a, b in pairs) else tuple(a // b for a, b in pairs)
