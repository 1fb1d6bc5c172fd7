"""Rules of layers with parameters: convolutions, linear layers, matrix products, normalisation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from gnnrl_lightning.topology.labels import (
    LOCKED,
    Labels,
    Parameter,
    Product,
    along,
    spread,
    unknown,
    varies,
)
from gnnrl_lightning.topology.trace import Program

LOCKED_ROW = torch.tensor([LOCKED])
"""The single input column of a depth-wise weight."""


def _intact(state: Labels, *parameters: Any) -> bool:
    """Whether these are whole parameters, neither computed nor cut or permuted on the way; None passes."""
    return all(
        parameter is None
        or (
            isinstance(parameter, Parameter)
            and parameter.index.shape == state.program.shapes[parameter.name]
            and parameter.index.is_contiguous()
        )
        for parameter in parameters
    )


def _tie_vectors(state: Labels, channels: Tensor, *parameters: Parameter | None) -> None:
    for parameter in parameters:
        if parameter is not None:
            state.tie(parameter.name, 0, channels)


def _blocks(state: Labels, vector: Tensor, groups: int) -> Tensor:
    """Unites the i-th channels of all blocks, so that each block keeps the same number; returns one block's labels."""
    blocks = vector.reshape(groups, -1)
    state.unite(blocks, blocks[:1])
    return blocks[0]


def _images(state: Labels, shape: torch.Size) -> int:
    """Positions of an activation for one image."""
    return shape.numel() // state.program.example_shape[0]


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
    kernel = Program.shape(node.args[1])
    result = Program.shape(node)
    channel = x.dim() - len(kernel) + 1  # 1, or 0 without a batch dimension
    factor = _images(state, result) // kernel[0] * kernel[2:].numel()
    if not _intact(state, weight, bias) or channel != 1:
        state.products.append(Product(node.name, factor * kernel[0] * kernel[1]))
        return unknown(state, node, [x, weight, bias])
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
    _tie_vectors(state, outputs, bias)
    state.note_sizes(Program.module_path(node), nn.modules.conv._ConvNd, **attributes)
    state.products.append(Product(node.name, factor, outputs, columns))
    return spread(outputs, result, 1)


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
    kernel = Program.shape(node.args[1])
    factor = _images(state, x.shape) // kernel[0] * kernel[2:].numel()
    if not _intact(state, weight, bias) or groups != 1 or x.dim() != len(kernel):
        state.products.append(Product(node.name, factor * kernel[0] * kernel[1]))
        return unknown(state, node, [x, weight, bias])
    inputs, outputs = along(state, x, 1), state.fresh(kernel[1])
    state.tie(weight.name, 0, inputs)
    state.tie(weight.name, 1, outputs)
    state.readers[weight.name] = 0
    _tie_vectors(state, outputs, bias)
    path = Program.module_path(node)
    state.note_sizes(path, nn.modules.conv._ConvNd, in_channels=inputs, out_channels=outputs)
    state.products.append(Product(node.name, factor, inputs, outputs))
    return spread(outputs, Program.shape(node), 1)


def _linear(state: Labels, node: fx.Node, x: Tensor, weight: Any, bias: Any = None) -> Tensor:
    rows = Program.shape(node.args[1])
    factor = _images(state, x.shape[:-1])
    if not _intact(state, weight, bias):
        state.products.append(Product(node.name, factor * rows.numel()))
        return unknown(state, node, [x, weight, bias])
    inputs, outputs = along(state, x, -1), state.fresh(rows[0])
    state.tie(weight.name, 0, outputs)
    state.tie(weight.name, 1, inputs)
    state.readers[weight.name] = 1
    _tie_vectors(state, outputs, bias)
    state.note_sizes(Program.module_path(node), nn.Linear, in_features=inputs, out_features=outputs)
    state.products.append(Product(node.name, factor, outputs, inputs))
    return spread(outputs, Program.shape(node), x.dim() - 1)


def _matmul(state: Labels, node: fx.Node, a: Any, b: Any) -> Any:
    inner = Program.shape(node.args[0])[-1]
    state.products.append(Product(node.name, _images(state, Program.shape(node)) * inner))
    return unknown(state, node, [a, b])


def _attention(state: Labels, node: fx.Node, q: Any, k: Any, v: Any, *rest: Any, **named: Any) -> Any:
    queries, keys, values = (Program.shape(argument) for argument in node.args[:3])
    factor = _images(state, queries[:-1]) * keys[-2] * (queries[-1] + values[-1])
    state.products.append(Product(node.name, factor))
    return unknown(state, node, [q, k, v, *rest, *named.values()])


def _batch_norm(state: Labels, node: fx.Node, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    parameters = [value for value in (*args, *kwargs.values()) if isinstance(value, Parameter)]
    if not _intact(state, *parameters):
        return unknown(state, node, [x, *parameters])
    channels = along(state, x, 1)
    _tie_vectors(state, channels, *parameters)
    state.note_sizes(Program.module_path(node), nn.modules.batchnorm._NormBase, num_features=channels)
    return spread(channels, x.shape, 1)


def _layer_norm(state: Labels, node: fx.Node, x: Tensor, shape: list[int], *_: Any, **__: Any) -> Tensor:
    """Each channel's value depends on all others, so without some of them the rest would change: all stay."""
    if any(varies(x, -1 - d) for d in range(len(shape))):
        state.lock(x, f"{Program.place(node)} normalises over channels")
    return x


def _group_norm(
    state: Labels, node: fx.Node, x: Tensor, groups: int, weight: Any = None, bias: Any = None, *_: Any
) -> Tensor:
    channels = along(state, x, 1)
    if groups != x.shape[1]:
        state.lock(channels, f"{Program.place(node)} normalises over channels")
    elif not _intact(state, weight, bias):
        return unknown(state, node, [x, weight, bias])
    else:
        _tie_vectors(state, channels, weight, bias)
        path = Program.module_path(node)
        state.note_sizes(path, nn.GroupNorm, num_channels=channels, num_groups=channels)
    return spread(channels, x.shape, 1)


def _prelu(state: Labels, node: fx.Node, x: Tensor, weight: Any) -> Tensor:
    if not _intact(state, weight):
        return unknown(state, node, [x, weight])
    if weight.index.numel() > 1:
        channels = along(state, x, 1)
        _tie_vectors(state, channels, weight)
        state.note_sizes(Program.module_path(node), nn.PReLU, num_parameters=channels)
    return x


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "linear": _linear,
    **dict.fromkeys(("batch_norm", "instance_norm"), _batch_norm),
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "prelu": _prelu,
}
PRODUCTS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "scaled_dot_product_attention": _attention,
}
