"""Which numbers of a traced program follow the size of the images, so that a rewritten network takes any size.

A trace holds the height and width of its images as plain numbers: in views, in an upsampling to the input's size, in a
pooling over the whole map, in a mean that divides by h · w. Traced at two other sizes, these numbers are those that
differ, and what they are is found among the sizes of the activations before them: one of these, a multiple or a part
of it, a constant more or less, or a product of two. (`torch.export` can follow sizes as symbols, but takes minutes
where a padding is computed from them.)
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.inputs import Inputs, changed, drawn
from gnnrl_lightning.pruning.compare import RELATIVE_TOLERANCE, error_of, evaluated
from gnnrl_lightning.pruning.program import masked_output, run, tensors_of
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.program import SIZE, Program
from gnnrl_lightning.topology.shuffle import fuse_shuffles, name_indices
from gnnrl_lightning.topology.trace import read_program

Way = Callable[[int, int], int]
"""Another size of a dimension, from the one that it has and its place from the last dimension."""
_Values = tuple[int, ...]
"""The same number in every trace."""

ODD: Way = lambda size, place: size + 13 + 4 * place  # noqa: E731
MULTIPLE: Way = lambda size, place: (2 + place % 2) * size  # noqa: E731
"""For networks that halve their maps and want to meet them again."""
_OTHER_MULTIPLE: Way = lambda size, place: (5 - 2 * (place % 2)) * size  # noqa: E731


class _FixedError(Exception):
    """Why a program holds for one size of images alone."""


def follow_sizes(topology: Topology) -> None:
    """Lets the numbers of the program follow the size of its inputs, in place, if it can be told how; once.

    Its operations keep their names, those that give sizes come between them. `program.fixed` says afterwards why not.
    """
    program = topology.program
    if program.fixed is None:
        try:
            _follow(topology)
            program.fixed = ""
        except _FixedError as reason:
            program.fixed = str(reason)


def resized(example: Inputs, way: Way) -> Inputs:
    """Inputs, all zero, whose dimensions behind that of the channels have other sizes."""

    def other(x: Tensor) -> Tensor:
        return x.new_zeros([size if d < 2 else way(size, x.dim() - 1 - d) for d, size in enumerate(x.shape)])

    return changed(example, lambda x: other(x) if x.dim() > 2 else x)


def _follow(topology: Topology) -> None:
    program = topology.program
    traces = [program]
    for way in (MULTIPLE, ODD, _OTHER_MULTIPLE):
        try:
            other = read_program(program.modules[""], resized(program.example, way))
        except UserError:
            continue
        name_indices(other)
        fuse_shuffles(other.graph)
        if _outline(other) == _outline(program):
            traces.append(other)
        if len(traces) == 3:
            break
    else:
        raise _FixedError("the network takes no other size, or runs other operations there")
    for name, value in program.constants.items():
        if not all(torch.equal(each.constants[name], value) for each in traces[1:]):
            raise _FixedError(f"{name} is made for it")
    _replace(topology, traces)


def _another_size(program: Program, network: nn.Module) -> Inputs | None:
    """Noise of another size that a network takes, odd if possible; None if it takes no other."""
    for way in (ODD, MULTIPLE):
        example = changed(resized(program.example, way), lambda x: x.float() if x.is_floating_point() else x)
        images = drawn(example, program.batch + 1, torch.Generator().manual_seed(0))
        try:
            evaluated(network, images)
        except Exception:  # whatever the network raises at such a size
            continue
        return images
    return None


def fault_at_another_size(
    topology: Topology, network: nn.Module, small: nn.Module, kept: Sequence[Sequence[int]]
) -> str:
    """Compares a pruned network with the original that it is of, at a size that the program was not traced at.

    Args:
        topology: Of the network; its program follows sizes.
        network: The original.
        small: Rewritten, with these channels.
        kept: The channels that stay, one list a group.

    Returns:
        What is wrong; empty if nothing is.
    """
    images = _another_size(topology.program, network)
    if images is None:
        return "the network takes no other size"
    tensors = {name: value.detach().cpu() for name, value in tensors_of(network).items()}
    tensors = changed(tensors, lambda x: x.float() if x.is_floating_point() else x)
    try:
        errors = [
            error_of(run(tensors, topology, images), evaluated(network, images)),
            error_of(masked_output(tensors, topology, topology.keep_mask(kept), images), evaluated(small, images)),
        ]
    except Exception:  # whatever an operation raises at another size
        errors = [math.inf]
    return "" if max(errors) <= RELATIVE_TOLERANCE else "at other sizes it would compute something else"


def _outline(program: Program) -> list[Any]:
    return [(node.op, node.name, node.target) for node in program.graph.nodes]


def _replace(topology: Topology, traces: list[Program]) -> None:
    """Puts operations that give sizes in the place of numbers."""
    program = topology.program
    sizes = _Sizes(program.graph)
    try:
        changes = _changes(sizes, traces)
        follow = program.downstream(sizes.made)
        for name in topology.folds:
            if topology.labels.folded[name] in follow:
                raise _FixedError(f"the weight {name} is computed for it")
    except _FixedError:
        for node in reversed(sizes.made):
            program.graph.erase_node(node)
        raise
    for node, args, kwargs in changes:
        node.args, node.kwargs = args, kwargs


def _changes(sizes: "_Sizes", traces: list[Program]) -> list[tuple[fx.Node, Any, Any]]:
    """Operations of the first trace with their new arguments."""
    changes = []
    for nodes in zip(*(list(each.graph.nodes) for each in traces), strict=True):
        flat = [pytree.tree_flatten((node.args, node.kwargs)) for node in nodes]
        columns = list(zip(*(leaves for leaves, _ in flat), strict=True))
        new = [sizes.of(nodes[0], column) for column in columns]
        if any(value is not column[0] for value, column in zip(new, columns, strict=True)):
            changes.append((nodes[0], *pytree.tree_unflatten(new, flat[0][1])))
        sizes.add(nodes)
    return changes


class _Sizes:
    """The sizes of the activations so far that differ between traces, and operations that give them.

    Args:
        graph: Of the first trace, which gets these operations.

    Attributes:
        made: These operations.
    """

    def __init__(self, graph: fx.Graph):
        self.graph = graph
        self.made: list[fx.Node] = []
        self._known: dict[_Values, tuple[fx.Node, int]] = {}
        self._own: dict[fx.Node, dict[_Values, tuple[fx.Node, int]]] = {}

    def add(self, nodes: tuple[fx.Node, ...]) -> None:
        """Takes notice of the sizes of an operation's result, one node a trace."""
        results = [node.meta.get("val") for node in nodes]
        own: dict[_Values, tuple[fx.Node, int]] = {}
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
            raise _FixedError(f"{Program.place(node)} has another {type(values[0]).__name__} at each size")
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
            raise _FixedError(f"{Program.place(node)} has a number that follows none ({', '.join(map(str, values))})")
        return found

    def _integer(self, node: fx.Node, values: _Values) -> fx.Node | None:
        """The simplest expression for these values, of the operation's own operands if possible."""
        known: dict[_Values, tuple[fx.Node, int]] = {}
        for source in node.all_input_nodes:
            known |= self._own.get(source, {})
        known |= {each: self._known[each] for each in reversed(self._known) if each not in known}
        if values in known:
            return self._size(*known[values])
        for each, place in known.items():
            times = _quotient(values, each)
            if times in known:
                return self._call(operator.mul, self._size(*place), self._size(*known[times]))
        for each, place in known.items():
            times = _quotient(values, each)
            if times and len(set(times)) == 1:
                return self._call(operator.mul, self._size(*place), times[0])
            parts = round(each[0] / values[0]) if values[0] else 0
            if parts > 1 and all(size // parts == value for size, value in zip(each, values, strict=True)):
                return self._call(operator.floordiv, self._size(*place), parts)
        for each, place in known.items():
            more = {value - size for value, size in zip(values, each, strict=True)}
            if len(more) == 1:
                return self._call(operator.add, self._size(*place), more.pop())
        for each, place in known.items():
            times = _quotient(values, each)
            rest = times and self._integer_product(known, times)
            if rest:
                return self._call(operator.mul, self._size(*place), rest)
        return None

    def _integer_product(self, known: dict[_Values, tuple[fx.Node, int]], values: _Values) -> fx.Node | None:
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


def _quotient(values: _Values, divisors: Iterable[int]) -> _Values | None:
    """Value by value, if none leaves a remainder."""
    pairs = list(zip(values, divisors, strict=True))
    return None if any(not b or a % b for a, b in pairs) else tuple(a // b for a, b in pairs)
