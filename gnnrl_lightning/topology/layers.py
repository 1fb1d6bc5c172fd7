"""Rules of layers with parameters: convolutions, linear layers, normalisation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from gnnrl_lightning.topology.label_vectors import LOCKED, spread, varies
from gnnrl_lightning.topology.labels import Labels, along, images, unknown
from gnnrl_lightning.topology.program import Program
from gnnrl_lightning.topology.values import Parameter, Product

LOCKED_ROW = torch.tensor([LOCKED])
"""The single input column of a depth-wise weight."""


def _fixed(*values: Any) -> bool:
    """Whether these are parameters (or None): none of them depends on the network's input."""
    return all(value is None or isinstance(value, Parameter) for value in values)


def _tie_vectors(state: Labels, channels: Tensor, *parameters: Parameter | None) -> None:
    for parameter in parameters:
        if parameter is not None:
            state.tie(parameter.name, 0, channels)


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
    factor = images(state, result) // kernel[0] * kernel[2:].numel()
    spatial = [d for d in range(2, x.dim()) if varies(x, d)]
    if len(spatial) == 1 and _fixed(weight, bias) and x.shape == result:
        return _neighbours(state, node, x, spatial[0], factor * kernel[0] * kernel[1] // x.shape[spatial[0]])
    if not _fixed(weight, bias) or channel != 1 or spatial:
        state.products.append(Product(node.name, factor * kernel[0] * kernel[1]))
        return unknown(state, node, [x, weight, bias])
    inputs, outputs = along(state, x, 1), state.fresh(kernel[0])
    attributes = {"in_channels": inputs, "out_channels": outputs}
    columns = read = inputs
    if groups > 1 and kernel[1] == 1:
        state.unite(outputs, inputs.repeat_interleave(kernel[0] // groups))
        columns = read = LOCKED_ROW
        attributes["groups"] = inputs
    elif groups > 1:
        columns = inputs.reshape(groups, -1)
        read = columns[0]  # of one block; all keep equally many
        state.blocks += [columns, outputs.reshape(groups, -1)]
    state.tie(weight.name, weight.at(0), outputs)
    state.tie(weight.name, weight.at(1), columns)
    if columns is not LOCKED_ROW:
        state.reads_along(weight, 1)
        state.reads.add(node.name)
    _tie_vectors(state, outputs, bias)
    state.note_sizes(node, nn.modules.conv._ConvNd, **attributes)
    state.products.append(Product(node.name, factor, outputs, read))
    return spread(outputs, result, 1)


def _neighbours(state: Labels, node: fx.Node, x: Tensor, dimension: int, factor: int) -> Tensor:
    """A convolution along channels, as in efficient channel attention: its neighbours are those that are left."""
    channels = along(state, x, dimension)
    state.restricted[node.name] = dimension
    state.products.append(Product(node.name, factor, channels))
    return spread(channels, x.shape, dimension)


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
    factor = images(state, x.shape) // kernel[0] * kernel[2:].numel()
    if not _fixed(weight, bias) or x.dim() != len(kernel):
        state.products.append(Product(node.name, factor * kernel[0] * kernel[1]))
        return unknown(state, node, [x, weight, bias])
    inputs, outputs = along(state, x, 1), state.fresh(groups * kernel[1])
    attributes = {"in_channels": inputs, "out_channels": outputs}
    columns = written = outputs
    if groups > 1 and kernel[:2] == (groups, 1):
        state.unite(outputs, inputs)
        columns = written = LOCKED_ROW
        attributes["groups"] = inputs
    elif groups > 1:
        columns = outputs.reshape(groups, -1)
        written = columns[0]  # by one block; all keep equally many
        state.blocks += [inputs.reshape(groups, -1), columns]
    state.tie(weight.name, weight.at(0), inputs)
    state.tie(weight.name, weight.at(1), columns)
    if columns is not LOCKED_ROW:
        state.reads_along(weight, 0)
        state.reads.add(node.name)
    _tie_vectors(state, outputs, bias)
    state.note_sizes(node, nn.modules.conv._ConvNd, **attributes)
    state.products.append(Product(node.name, factor, inputs, written))
    return spread(outputs, Program.shape(node), 1)


def _linear(state: Labels, node: fx.Node, x: Tensor, weight: Any, bias: Any = None) -> Tensor:
    rows = Program.shape(node.args[1])
    factor = images(state, x.shape[:-1])
    if not _fixed(weight, bias):
        state.products.append(Product(node.name, factor * rows.numel()))
        return unknown(state, node, [x, weight, bias])
    inputs, outputs = along(state, x, -1), state.fresh(rows[0])
    state.tie(weight.name, weight.at(0), outputs)
    state.tie(weight.name, weight.at(1), inputs)
    state.reads_along(weight, 1)
    state.reads.add(node.name)
    _tie_vectors(state, outputs, bias)
    state.note_sizes(node, nn.Linear, in_features=inputs, out_features=outputs)
    state.products.append(Product(node.name, factor, outputs, inputs))
    return spread(outputs, Program.shape(node), x.dim() - 1)


def _batch_norm(state: Labels, node: fx.Node, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    parameters = [value for value in (*args, *kwargs.values()) if isinstance(value, Parameter)]
    channels = along(state, x, 1)
    _tie_vectors(state, channels, *parameters)
    state.note_sizes(node, nn.modules.batchnorm._NormBase, num_features=channels)
    return spread(channels, x.shape, 1)


def _layer_norm(
    state: Labels, node: fx.Node, x: Tensor, shape: list[int], weight: Any = None, bias: Any = None, *_: Any
) -> Tensor:
    """Normalises over the channels that are left, if over nothing else as well."""
    if len(shape) > 1 and any(varies(x, -1 - d) for d in range(len(shape))):
        state.lock(x, f"{Program.place(node)} normalises over channels and positions")
    elif len(shape) == 1 and varies(x, -1):
        channels = along(state, x, -1)
        state.restricted[node.name] = x.dim() - 1
        _tie_vectors(state, channels, *(value for value in (weight, bias) if isinstance(value, Parameter)))
        for kind in (nn.LayerNorm, nn.RMSNorm):
            state.note_sizes(node, kind, normalized_shape=(0, channels))
        return spread(channels, x.shape, x.dim() - 1)
    return x


def _group_norm(
    state: Labels, node: fx.Node, x: Tensor, groups: int, weight: Any = None, bias: Any = None, *_: Any
) -> Tensor:
    channels = along(state, x, 1)
    _tie_vectors(state, channels, weight, bias)
    state.note_sizes(node, nn.GroupNorm, num_channels=channels)
    if groups == x.shape[1]:
        state.note_sizes(node, nn.GroupNorm, num_groups=channels)
    else:
        state.restricted[node.name] = 1
        state.blocks.append(channels.reshape(groups, -1))
    return spread(channels, x.shape, 1)


def _prelu(state: Labels, node: fx.Node, x: Tensor, weight: Any) -> Tensor:
    if weight.shape.numel() > 1:
        channels = along(state, x, 1)
        _tie_vectors(state, channels, weight)
        state.note_sizes(node, nn.PReLU, num_parameters=channels)
    return x


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "linear": _linear,
    **dict.fromkeys(("batch_norm", "instance_norm"), _batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "group_norm": _group_norm,
    "prelu": _prelu,
}
