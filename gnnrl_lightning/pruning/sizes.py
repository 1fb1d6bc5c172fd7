"""Which numbers of a traced program follow the size of the images, so that a rewritten network takes any size.

A trace holds the height and width of its images as plain numbers: in views, in an upsampling to the input's size, in a
pooling over the whole map, in a mean that divides by h · w. Traced at two other sizes, these numbers are those that
differ, and what they are is found among the sizes of the activations before them: one of these, a multiple or a part
of it, a constant more or less, or a product of two. (`torch.export` can follow sizes as symbols, but takes minutes
where a padding is computed from them.)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.inputs import Inputs, changed, drawn
from gnnrl_lightning.pruning.compare import RELATIVE_TOLERANCE, error_of, evaluated, floats
from gnnrl_lightning.pruning.program import masked_output, run, tensors_of
from gnnrl_lightning.pruning.size_expressions import FixedSizeError, SizeExpressions
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.program import Program
from gnnrl_lightning.topology.shuffle import fuse_shuffles, name_indices
from gnnrl_lightning.topology.trace import read_program

Way = Callable[[int, int], int]
"""Another size of a dimension, from the one that it has and its place from the last dimension."""

ODD: Way = lambda size, place: size + 13 + 4 * place  # noqa: E731
MULTIPLE: Way = lambda size, place: (2 + place % 2) * size  # noqa: E731
"""For networks that halve their maps and want to meet them again."""
_OTHER_MULTIPLE: Way = lambda size, place: (5 - 2 * (place % 2)) * size  # noqa: E731


def follow_sizes(topology: Topology) -> None:
    """Lets the numbers of the program follow the size of its inputs, in place, if it can be told how; once.

    Its operations keep their names, those that give sizes come between them. `program.fixed` says afterwards why not.
    """
    program = topology.program
    if program.fixed is None:
        try:
            _follow(topology)
            program.fixed = ""
        except FixedSizeError as reason:
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
        raise FixedSizeError("the network takes no other size, or runs other operations there")
    for name, value in program.constants.items():
        if not all(torch.equal(each.constants[name], value) for each in traces[1:]):
            raise FixedSizeError(f"{name} is made for it")
    _replace(topology, traces)


def _another_size(program: Program, network: nn.Module) -> Inputs | None:
    """Noise of another size that a network takes, odd if possible; None if it takes no other."""
    for way in (ODD, MULTIPLE):
        example = changed(resized(program.example, way), lambda x: x.float() if x.is_floating_point() else x)
        images = drawn(example, program.batch + 1, torch.Generator().manual_seed(0))
        try:
            outputs = floats(evaluated(network, images))
        except Exception:  # whatever the network raises at such a size
            continue
        if all(output.isfinite().all() for output in outputs):
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
        return "the network takes no other size, or gives no finite numbers there"
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
    sizes = SizeExpressions(program.graph)
    try:
        changes = _changes(sizes, traces)
        follow = program.downstream(node for node, _, _ in changes)
        for name in topology.folds:
            if topology.labels.folded[name] in follow:
                raise FixedSizeError(f"the weight {name} is computed for it")
    except FixedSizeError:
        for node in reversed(sizes.made):
            program.graph.erase_node(node)
        raise
    for node, args, kwargs in changes:
        node.args, node.kwargs = args, kwargs


def _changes(sizes: SizeExpressions, traces: list[Program]) -> list[tuple[fx.Node, Any, Any]]:
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
