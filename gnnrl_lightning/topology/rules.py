"""One rule an operation: what it does to channel labels. An operation without a rule locks what reaches it."""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.topology.labels import (
    LOCKED,
    Constant,
    Labels,
    Parameter,
    Product,
    Size,
    along,
    compact,
    spread,
    varies,
)
from gnnrl_lightning.topology.trace import Program

COPY = frozenset("clone contiguous detach detach_ alias to _to_copy type_as lift_fresh_copy".split())
ACTIVATION = frozenset(
    "relu relu_ relu6 hardtanh hardtanh_ leaky_relu leaky_relu_ elu elu_ selu selu_ celu gelu silu silu_ mish "
    "mish_ sigmoid sigmoid_ hardsigmoid hardsigmoid_ hardswish hardswish_ tanh tanh_ softplus softsign "
    "log_sigmoid".split()
)
COMBINE = frozenset("add add_ sub sub_ rsub mul mul_ div div_ maximum minimum where".split())
ELEMENTWISE = (
    COPY
    | ACTIVATION
    | COMBINE
    | frozenset(
        "dropout dropout_ feature_dropout alpha_dropout clamp clamp_ clamp_min clamp_max exp sqrt rsqrt "
        "reciprocal abs neg pow square erf".split()
    )
)
POOL = frozenset(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d upsample_nearest2d "
    "upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d".split()
)
REDUCE = frozenset("mean sum amax amin var std".split())
RESHAPE = frozenset("flatten view reshape _unsafe_view unflatten view_as reshape_as".split())
MOVE = RESHAPE | frozenset(
    "permute transpose t numpy_T unsqueeze squeeze expand expand_as cat concat stack roll flip movedim repeat".split()
)
CUT = frozenset(
    "slice select narrow chunk split split_with_sizes tensor_split unbind pixel_shuffle pixel_unshuffle "
    "channel_shuffle".split()
)

LOCKED_ROW = torch.tensor([LOCKED])
"""The single input column of a depth-wise weight."""


def apply_rule(state: Labels, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Runs one operation on labels.

    Args:
        state: Where unions, ties and locks are noted.
        node: The operation; its shapes are in `meta["val"]`.
        args: Its arguments: label tensors for activations, `Parameter`, `Constant`, plain values as they are.
        kwargs: Its named arguments, likewise.

    Returns:
        Labels of its result in the result's shape, a list of them, or what a parameter or constant became.
    """
    if node.target is operator.getitem:
        return args[0][args[1]]
    name = Program.operation(node)
    operands = pytree.tree_leaves((args, kwargs), is_leaf=lambda v: isinstance(v, (Parameter, Constant)))
    activations = [value for value in operands if isinstance(value, Tensor)]
    if not activations:
        return _without_activations(state, node, name, args, kwargs, operands)
    if name in RULES:
        return RULES[name](state, node, *args, **kwargs)
    if name in ELEMENTWISE:
        return _elementwise(state, node, operands)
    if name in POOL:
        dimension = activations[0].dim() - 1 - int(name[-2])
        return spread(along(state, activations[0], dimension), _shape(node), dimension)
    if name in REDUCE:
        return _reduce(state, node, activations[0], *args[1:2], **kwargs)
    if name in MOVE or name in CUT:
        return _move(state, node, name, args, kwargs)
    return _unknown(state, node, operands)


def _shape(node: fx.Node) -> torch.Size:
    return node.meta["val"].shape


def _at(node: fx.Node) -> str:
    """How a lock names the operation, e.g. `view in layer1.0.attention`."""
    path = Program.module_path(node)
    return f"{Program.operation(node)} in {path}" if path else Program.operation(node)


def _locked(node: fx.Node) -> Any:
    value = node.meta["val"]
    if isinstance(value, (list, tuple)):
        return [torch.full((1,) * v.dim(), LOCKED).expand(v.shape) for v in value]
    return torch.full((1,) * value.dim(), LOCKED).expand(value.shape)


def _unknown(state: Labels, node: fx.Node, operands: list[Any]) -> Any:
    for value in operands:
        if isinstance(value, Tensor):
            state.lock(value, f"{_at(node)} has no rule")
        elif isinstance(value, Parameter):
            state.fix(value, f"{_at(node)} has no rule")
    return _locked(node)


def _without_activations(state: Labels, node: fx.Node, name: str, args: Any, kwargs: Any, operands: list[Any]) -> Any:
    """Operations on parameters and constants alone: a parameter's elements are followed while they only move."""
    parameters = [value for value in operands if isinstance(value, Parameter)]
    if len(parameters) == 1 and args and parameters[0] is args[0]:
        if name in COPY:
            return parameters[0]
        if name in (MOVE | CUT) - {"cat", "concat", "stack"} and callable(node.target):
            return pytree.tree_map(
                lambda index: Parameter(parameters[0].name, index),
                node.target(parameters[0].index, *args[1:], **kwargs),
            )
    for parameter in parameters:
        state.fix(parameter, f"{_at(node)} computes with {parameter.name}")
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return [Constant(v.shape) for v in value]
    return Constant(value.shape) if isinstance(value, Tensor) else value


def _elementwise(state: Labels, node: fx.Node, operands: list[Any]) -> Tensor:
    """Channels that meet element by element become one; what is broadcast along channels says nothing of them."""
    shape = _shape(node)
    result, result_shape = None, shape
    for value in operands:
        if not isinstance(value, Tensor):
            continue
        aligned = value.reshape((1,) * (len(shape) - value.dim()) + tuple(value.shape))
        if result is None:
            result, result_shape = aligned, aligned.shape
            continue
        over = [d for d in range(len(shape)) if aligned.shape[d] == 1 and varies(result, d)]
        under = [d for d in range(len(shape)) if result_shape[d] == 1 and varies(aligned, d)]
        if over and under:
            state.lock(result, f"{_at(node)} is an outer product of channels")
            state.lock(aligned, f"{_at(node)} is an outer product of channels")
            return _locked(node)
        if under:
            result = aligned
        elif not over:
            state.unite(result, aligned)
        result_shape = torch.broadcast_shapes(result_shape, aligned.shape)
        result = compact(result).expand(result_shape) if not under else compact(aligned).expand(result_shape)
    assert result is not None
    labels = compact(result).expand(shape)
    for value in operands:
        if isinstance(value, Parameter):
            state.tie_elements(value, compact(labels), f"{_at(node)} mixes {value.name} with channels")
        elif isinstance(value, Constant):
            sizes = (1,) * (len(shape) - len(value.shape)) + tuple(value.shape)
            if any(size > 1 and varies(labels, d) for d, size in enumerate(sizes)):
                state.lock(labels, f"{_at(node)} combines channels with a constant of fixed size")
    return labels


def _reduce(state: Labels, node: fx.Node, labels: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    dims = range(labels.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    for d in dims:
        if varies(labels, d):
            state.lock(labels, f"{_at(node)} reduces over channels")
    for d in sorted((d % labels.dim() for d in dims), reverse=True):
        labels = labels.narrow(d, 0, 1)
    return labels.reshape(_shape(node))


def _move(state: Labels, node: fx.Node, name: str, args: Any, kwargs: Any) -> Any:
    """Moves labels with the operation itself; locks them where the operation has a number of channels in it."""

    def as_labels(value: Any) -> Any:
        if isinstance(value, Constant):
            return torch.full((1,) * len(value.shape), LOCKED).expand(value.shape)
        if not isinstance(value, Parameter):
            return value
        wide = [d for d, size in enumerate(value.index.shape) if size > 1]
        if len(wide) != 1 or value.index.numel() != state.program.shapes[value.name].numel():
            state.fix(value, f"{_at(node)} joins {value.name} to channels")
            return torch.full((1,) * value.index.dim(), LOCKED).expand(value.index.shape)
        labels = spread(state.fresh(value.index.numel()), value.index.shape, wide[0])
        state.tie_elements(value, labels, f"{_at(node)} joins {value.name} to channels")
        return labels

    leaf = lambda v: isinstance(v, (Parameter, Constant))  # noqa: E731
    args, kwargs = pytree.tree_map(as_labels, (args, kwargs), is_leaf=leaf)
    if name in {"cat", "concat"}:
        return _concatenate(*args, **kwargs)
    assert callable(node.target)
    if name in {"view", "_unsafe_view"}:  # labels are expanded, not contiguous as the activations are
        result = args[0].reshape(_shape(node))
    else:
        result = node.target(*args, **kwargs)
    source = args[0] if isinstance(args[0], Tensor) else None
    if source is not None and (
        (name in RESHAPE and _splits_channels(source, result.shape))
        or (name in CUT and _cuts_channels(name, source, result, *args[1:]))
    ):
        state.lock(source, f"{_at(node)} has a number of channels in the code")
    return result


def _concatenate(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """As `torch.cat`, without copying the dimensions along which no operand has different labels."""
    dim %= tensors[0].dim()
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    for d in range(len(shape)):
        if d != dim and all(t.stride(d) == 0 for t in tensors):
            tensors = [t.narrow(d, 0, 1) for t in tensors]
    return torch.cat(tensors, dim).expand(shape)


def _splits_channels(labels: Tensor, shape: torch.Size) -> bool:
    """Whether a reshape puts a dimension with channels into several: they would have to stay a full rectangle."""
    ends = set(itertools.accumulate(shape, operator.mul))
    before = 1
    for d, size in enumerate(labels.shape):
        if varies(labels, d) and any(before < end < before * size for end in ends):
            return True
        before *= size
    return False


def _cuts_channels(name: str, labels: Tensor, result: Any, *args: Any) -> bool:
    if name in {"select", "unbind"}:
        return varies(labels, args[0] if args else 0)
    if "shuffle" in name:
        return varies(labels, -3)
    part = result[0] if isinstance(result, (list, tuple)) else result
    return any(part.shape[d] != size and varies(labels, d) for d, size in enumerate(labels.shape))


def _intact(state: Labels, weight: Any) -> bool:
    return (
        isinstance(weight, Parameter)
        and weight.index.shape == state.program.shapes[weight.name]
        and weight.index.is_contiguous()
    )


def _sizes(state: Labels, node: fx.Node, kind: type[nn.Module], **labels: Tensor | tuple[int, Tensor]) -> None:
    """Notes which attributes of the operation's module count channels, if it is of the standard kind."""
    path = Program.module_path(node)
    if isinstance(state.program.modules.get(path), kind):
        for attribute, value in labels.items():
            position, vector = value if isinstance(value, tuple) else (None, value)
            state.sizes.append(Size(path, attribute, position, vector))


def _blocks(state: Labels, vector: Tensor, groups: int) -> Tensor:
    """Unites the i-th channels of all blocks, so that each block keeps the same number; returns one block's labels."""
    blocks = vector.reshape(groups, -1)
    state.unite(blocks, blocks[:1])
    return blocks[0]


def _convolution(
    state: Labels,
    node: fx.Node,
    x: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if not _intact(state, weight) or x.dim() != len(_shape(node)):
        return _unknown(state, node, [x, weight, bias])
    kernel = state.program.shapes[weight.name]
    inputs, outputs = along(state, x, 1), state.fresh(kernel[0])
    attributes = {"in_channels": inputs, "out_channels": outputs}
    columns = inputs
    if groups > 1 and kernel[1] == 1:
        state.unite(outputs, inputs.repeat_interleave(kernel[0] // groups))
        columns = LOCKED_ROW
        attributes["groups"] = inputs
    elif groups > 1:
        columns = _blocks(state, inputs, groups)
        _blocks(state, outputs, groups)
    state.tie(weight.name, 0, outputs)
    state.tie(weight.name, 1, columns)
    if columns is not LOCKED_ROW:
        state.readers[weight.name] = 1
    if bias is not None:
        state.tie(bias.name, 0, outputs)
    _sizes(state, node, nn.modules.conv._ConvNd, **attributes)
    positions = _shape(node)[0] * _shape(node)[2:].numel() // state.program.example_shape[0]
    state.products.append(Product(node.name, positions * kernel[2:].numel(), outputs, columns))
    return spread(outputs, _shape(node), 1)


def _transposed_convolution(
    state: Labels,
    node: fx.Node,
    x: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    if not _intact(state, weight) or groups != 1:
        return _unknown(state, node, [x, weight, bias])
    kernel = state.program.shapes[weight.name]
    inputs, outputs = along(state, x, 1), state.fresh(kernel[1])
    state.tie(weight.name, 0, inputs)
    state.tie(weight.name, 1, outputs)
    state.readers[weight.name] = 0
    if bias is not None:
        state.tie(bias.name, 0, outputs)
    _sizes(state, node, nn.modules.conv._ConvNd, in_channels=inputs, out_channels=outputs)
    positions = x.shape[0] * x.shape[2:].numel() // state.program.example_shape[0]
    state.products.append(Product(node.name, positions * kernel[2:].numel(), inputs, outputs))
    return spread(outputs, _shape(node), 1)


def _linear(state: Labels, node: fx.Node, x: Tensor, weight: Any, bias: Any = None) -> Tensor:
    if not _intact(state, weight):
        return _unknown(state, node, [x, weight, bias])
    inputs, outputs = along(state, x, -1), state.fresh(state.program.shapes[weight.name][0])
    state.tie(weight.name, 0, outputs)
    state.tie(weight.name, 1, inputs)
    state.readers[weight.name] = 1
    if bias is not None:
        state.tie(bias.name, 0, outputs)
    _sizes(state, node, nn.Linear, in_features=inputs, out_features=outputs)
    positions = x.shape[:-1].numel() // state.program.example_shape[0]
    state.products.append(Product(node.name, positions, outputs, inputs))
    return spread(outputs, _shape(node), x.dim() - 1)


def _matmul(state: Labels, node: fx.Node, a: Any, b: Any) -> Any:
    shape = a.index.shape if isinstance(a, Parameter) else a.shape
    factor = _shape(node).numel() * shape[-1] // state.program.example_shape[0]
    state.products.append(Product(node.name, factor))
    return _unknown(state, node, [a, b])


def _attention(state: Labels, node: fx.Node, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> Any:
    positions = q.shape[:-1].numel() * k.shape[-2] // state.program.example_shape[0]
    state.products.append(Product(node.name, positions * (q.shape[-1] + v.shape[-1])))
    return _unknown(state, node, [q, k, v])


def _batch_norm(state: Labels, node: fx.Node, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    channels = along(state, x, 1)
    for value in (*args, *kwargs.values()):
        if isinstance(value, Parameter):
            state.tie(value.name, 0, channels)
    _sizes(state, node, nn.modules.batchnorm._NormBase, num_features=channels)
    return spread(channels, x.shape, 1)


def _layer_norm(
    state: Labels, node: fx.Node, x: Tensor, shape: list[int], weight: Any = None, bias: Any = None, *_: Any
) -> Tensor:
    if len(shape) != 1:
        return _unknown(state, node, [x, weight, bias])
    channels = along(state, x, -1)
    for value in (weight, bias):
        if value is not None:
            state.tie(value.name, 0, channels)
    _sizes(state, node, nn.LayerNorm, normalized_shape=(0, channels))
    return x


def _group_norm(
    state: Labels, node: fx.Node, x: Tensor, groups: int, weight: Any = None, bias: Any = None, *_: Any
) -> Tensor:
    channels = along(state, x, 1)
    _sizes(state, node, nn.GroupNorm, num_channels=channels)
    if groups == x.shape[1]:
        _sizes(state, node, nn.GroupNorm, num_groups=channels)
    elif groups > 1:
        _blocks(state, channels, groups)
    for value in (weight, bias):
        if value is not None:
            state.tie(value.name, 0, channels)
    return spread(channels, x.shape, 1)


def _prelu(state: Labels, node: fx.Node, x: Tensor, weight: Any) -> Tensor:
    if state.program.shapes[weight.name].numel() > 1:
        channels = along(state, x, 1)
        state.tie(weight.name, 0, channels)
        _sizes(state, node, nn.PReLU, num_parameters=channels)
    return x


def _pad(state: Labels, node: fx.Node, x: Tensor, pad: list[int], mode: str = "constant", value: Any = None) -> Tensor:
    """Zeros beside channels are channels without a producer: they follow what they are later added to."""
    in_attribute = isinstance(state.program.modules.get(Program.module_path(node)), nn.modules.padding._ConstantPadNd)
    for i, (left, right) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        d = x.dim() - 1 - i
        shape = list(x.shape)
        if not varies(x, d):
            shape[d] += left + right
            x = x.narrow(d, 0, 1).expand(shape)
            continue
        if left == right == 0:
            continue
        before, after = state.fresh(max(left, 0)), state.fresh(max(right, 0))
        for position, labels in ((2 * i, before), (2 * i + 1, after)):
            _sizes(state, node, nn.modules.padding._ConstantPadNd, padding=(position, labels))
        parts = []
        for labels, kept in ((before, False), (None, True), (after, False)):
            if kept:
                parts.append(x)
            elif labels is not None and labels.numel():
                shape[d] = labels.numel()
                parts.append(spread(labels, torch.Size(shape), d))
        whole = _concatenate(parts, d)
        if not in_attribute or mode != "constant" or min(left, right) < 0:
            state.lock(whole, f"{_at(node)} has a number of channels in the code")
        x = whole
    return x


def _softmax(state: Labels, node: fx.Node, x: Tensor, dim: int, *_: Any) -> Tensor:
    if varies(x, dim):
        state.lock(x, f"{_at(node)} reduces over channels")
    return x


RULES: dict[str, Callable[..., Any]] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "conv_transpose1d": _transposed_convolution,
    "conv_transpose2d": _transposed_convolution,
    "conv_transpose3d": _transposed_convolution,
    "linear": _linear,
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "prelu": _prelu,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "softmax": _softmax,
    "_softmax": _softmax,
    "log_softmax": _softmax,
}
