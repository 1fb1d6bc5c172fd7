"""Rules of operations without parameters: element-wise, reductions, and all that only moves data."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.topology.label_vectors import compact, fixed, spread, varies
from gnnrl_lightning.topology.labels import Labels, locked
from gnnrl_lightning.topology.program import Program
from gnnrl_lightning.topology.values import Constant, Parameter

JOIN = frozenset("cat concat stack".split())
RESHAPE = frozenset("flatten view reshape _unsafe_view unflatten view_as reshape_as".split())
MOVE = (
    RESHAPE
    | JOIN
    | frozenset(
        "permute transpose t numpy_T mT unsqueeze squeeze expand expand_as flip movedim moveaxis repeat swapaxes "
        "swapdims".split()
    )
)
CUT = frozenset(
    "slice select narrow chunk split split_with_sizes tensor_split unbind roll pixel_shuffle pixel_unshuffle "
    "channel_shuffle take".split()
)


def elementwise(state: Labels, node: fx.Node, operands: list[Any]) -> Tensor:
    """Channels that meet element by element become one; what is broadcast along channels says nothing of them."""
    shape = Program.shape(node)
    labels: Tensor | None = None
    for value in operands:
        if not isinstance(value, Tensor):
            continue
        value = value.reshape((1,) * (len(shape) - value.dim()) + tuple(value.shape))
        labels = value if labels is None else _meet(state, node, labels, value)
    assert labels is not None
    labels = compact(labels).expand(shape)
    for value in operands:
        if isinstance(value, Parameter):
            state.tie_elements(value, compact(labels), f"{Program.place(node)} mixes {value.name} with channels")
        elif isinstance(value, Constant):
            sizes = (1,) * (len(shape) - len(value.shape)) + tuple(value.shape)
            if any(size > 1 and varies(labels, d) for d, size in enumerate(sizes)):
                state.lock(labels, f"{Program.place(node)} combines channels with a constant of fixed size")
    return labels


def _meet(state: Labels, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
    """Labels of two activations of one rank after they met, in the shape that both broadcast to."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    b_over_a = any(b.shape[d] == 1 and varies(a, d) for d in range(len(shape)))
    a_over_b = any(a.shape[d] == 1 and varies(b, d) for d in range(len(shape)))
    if a_over_b and b_over_a:
        for labels in (a, b):
            state.lock(labels, f"{Program.place(node)} is an outer product of channels")
        return fixed(shape)
    wide, narrow = (b, a) if a_over_b else (a, b)
    if not (a_over_b or b_over_a) or any(varies(narrow, d) for d in range(len(shape))):
        state.unite(wide, narrow)
    return compact(wide).expand(shape)


def reduce(state: Labels, node: fx.Node, labels: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    """A reduction over channels is one over those that are left; all others leave channels alone."""
    dims = range(labels.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    over = [d % labels.dim() for d in dims if varies(labels, d)]
    if len(over) == 1 and sum(varies(labels, d) for d in range(labels.dim())) == 1:
        state.restricted[node.name] = over[0]
        return fixed(Program.shape(node))
    if over:
        state.lock(labels, f"{Program.place(node)} reduces over channels")
    for d in dims:
        labels = labels.narrow(d, 0, 1)
    return labels.reshape(Program.shape(node))


def move(state: Labels, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Moves labels with the operation itself; locks them where it has the number of a channel in it."""
    name = Program.operation(node)

    def as_labels(value: Any) -> Any:
        if isinstance(value, Constant):
            return fixed(value.shape)
        return _label(state, node, value) if isinstance(value, Parameter) else value

    leaf = lambda v: isinstance(v, (Parameter, Constant))  # noqa: E731
    args, kwargs = pytree.tree_map(as_labels, (args, kwargs), is_leaf=leaf)
    if name in JOIN:
        return _join(state, name, *args, **kwargs)
    assert callable(node.target)
    # Labels are expanded, not contiguous as the activations are, so they may need a copy where those take a view.
    if name in RESHAPE:
        return _rectangular(state, args[0], args[0].reshape(Program.shape(node)))
    result = node.target(*args, **kwargs)
    if name in CUT and _indexes_channels(name, args[0], *args[1:]):
        state.lock(args[0], f"{Program.place(node)} has the number of a channel in the code")
    for part in result if isinstance(result, (list, tuple)) else [result]:
        # Cut out alone, a channel may scale all others, and so has to be there.
        if name in CUT and any(
            a > b == 1 and varies(args[0], d) for d, (a, b) in enumerate(zip(args[0].shape, part.shape, strict=False))
        ):
            state.lock(part, f"{Program.place(node)} cuts out a single channel")
    return result


def gated(state: Labels, node: fx.Node, x: Tensor, dim: int = -1) -> Tensor:
    """One half of the channels scales the other."""
    values, gates = x.chunk(2, dim)
    return _meet(state, node, values, gates)


def _label(state: Labels, node: fx.Node, parameter: Parameter) -> Tensor:
    """Labels of a parameter that joins activations, e.g. a class token: channels of its own along its one dimension."""
    shape, once = parameter.shape, compact(parameter.index).shape
    wide = [d for d, size in enumerate(once) if size > 1]
    if len(wide) != 1 or once.numel() != state.shapes[parameter.name].numel():
        state.fix(parameter, f"{Program.place(node)} joins {parameter.name} to channels")
        return fixed(shape)
    labels = spread(state.fresh(once.numel()), shape, wide[0])
    state.tie_elements(parameter, labels, f"{Program.place(node)} joins {parameter.name} to channels")
    return labels


def _concatenate(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """As `torch.cat`, without copying the dimensions along which no operand has different labels."""
    dim %= tensors[0].dim()
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    for d in range(len(shape)):
        if d != dim and all(t.stride(d) == 0 for t in tensors):
            tensors = [t.narrow(d, 0, 1) for t in tensors]
    return torch.cat(tensors, dim).expand(shape)


def _join(state: Labels, name: str, tensors: list[Tensor], dim: int = 0) -> Tensor:
    """What is joined along another dimension than that of its channels must have the same channels."""
    if name == "stack":
        dim %= tensors[0].dim() + 1
        tensors = [tensor.unsqueeze(dim) for tensor in tensors]
    dim %= tensors[0].dim()
    joined = _concatenate(tensors, dim)
    if varies(joined, dim) and any(varies(joined, d) for d in range(joined.dim()) if d != dim):
        state.unite(joined, joined.narrow(dim, 0, 1))
        return joined.narrow(dim, 0, 1).expand(joined.shape)
    return joined


def _rectangular(state: Labels, source: Tensor, result: Tensor) -> Tensor:
    """Labels after a reshape. Channels that it lays out in several dimensions must stay a full rectangle.

    So all entries along the outer ones have to be the same channels: a block of them shrinks, not the number of blocks.
    """
    if sum(varies(source, d) for d in range(source.dim())) > 1:
        return result
    channels = [d for d in range(result.dim()) if varies(result, d)]
    for d in channels[:-1]:
        state.unite(result, result.narrow(d, 0, 1))
        result = result.narrow(d, 0, 1).expand(result.shape)
    return result


def _indexes_channels(name: str, labels: Tensor, *args: Any) -> bool:
    """Whether an operation names single channels, or needs a fixed number of them."""
    if name in {"select", "unbind"}:
        return varies(labels, args[0] if args else 0)
    if name in {"channel_shuffle", "pixel_shuffle"}:
        return varies(labels, -3)
    if name == "roll":  # by a number of places; without dimensions it rolls the flattened tensor
        return any(varies(labels, d) for d in (args[1:] and args[1]) or range(labels.dim()))
    return False


def pad(state: Labels, node: fx.Node, x: Tensor, pad: list[int], mode: str = "constant", value: Any = None) -> Tensor:
    """Zeros beside channels are channels without a producer: they follow what they are later added to."""
    adjustable = mode == "constant" and min(pad) >= 0
    for i, (left, right) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        d = x.dim() - 1 - i
        shape = [*x.shape[:d], x.shape[d] + left + right, *x.shape[d + 1 :]]
        if not varies(x, d):
            x = x.narrow(d, 0, 1).expand(shape)
        elif not adjustable and (left or right):
            state.lock(x, f"{Program.place(node)} has a number of channels in the code")
            return locked(node)
        elif left or right:
            parts = [x]
            for side, count in ((2 * i, left), (2 * i + 1, right)):
                zeros = state.fresh(count)
                state.note_sizes(node, nn.modules.padding._ConstantPadNd, padding=(side, zeros))
                beside = spread(zeros, torch.Size([*x.shape[:d], count, *x.shape[d + 1 :]]), d)
                parts = [beside, *parts] if side == 2 * i else [*parts, beside]
            x = _concatenate(parts, d)
    return x
