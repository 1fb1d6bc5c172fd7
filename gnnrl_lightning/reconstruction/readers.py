"""Operations that sum over prunable channels: what they read, as rows of a matrix, and their weights, as one.

A reader computes y = W x + b at every output position. Here x is its input there, channels × taps: the k² places of a
convolution's kernel, the positions of a flattened map, one for a linear layer. All that follows (moments, refit, error
curves) knows nothing else of a layer.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.labels import Parameter
from gnnrl_lightning.topology.trace import Program


class Layout(Protocol):
    """How one operation lays out its input and its weight."""

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [blocks, rows, channels, taps]."""

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrix`, in the shape and memory format of `like`."""

    def positions(self, x: Tensor) -> int:
        """Output positions of a batch of inputs."""

    def sample(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """About `count` random output positions of a batch, for `inputs` and `outputs`; all if there are no more."""

    def inputs(self, x: Tensor, sampled: Tensor) -> Tensor:
        """What is read at sampled positions of a batch, [blocks, positions, channels, taps]."""

    def outputs(self, y: Tensor, sampled: Tensor | None = None) -> Tensor:
        """Results, or gradients of them, at sampled or all positions, [blocks, positions, rows]."""


@dataclass(frozen=True)
class Convolution:
    """A convolution in any number of dimensions, transposed ones too.

    Attributes:
        kernel: Size of the kernel, one number a dimension, as the three that follow.
        stride: Steps of the input, of the output where transposed.
        padding: Zeros before the input's first value.
        padding_after: Zeros behind its last one: another number where padding="same" is uneven.
        dilation: Steps between the kernel's taps.
        groups: Blocks of rows that read channels of their own.
        transposed: Whether the kernel is laid over the output.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    padding_after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool

    def matrix(self, weight: Tensor) -> Tensor:
        """See `Layout`."""
        blocks = weight.unflatten(0, (self.groups, -1)).flatten(3)
        return blocks.transpose(1, 2) if self.transposed else blocks

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `Layout`."""
        blocks = matrix.transpose(1, 2) if self.transposed else matrix
        return torch.empty_like(like).copy_(blocks.reshape(like.shape))

    def positions(self, x: Tensor) -> int:
        """See `Layout`."""
        return len(x) * math.prod(len(places) for places in _places(self, x.shape[2:]))

    def sample(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """See `Layout`; the same positions of all images."""
        total, each = self.positions(x) // len(x), -(-count // len(x))
        return torch.randperm(total, generator=generator)[:each] if each < total else torch.arange(total)

    def inputs(self, x: Tensor, sampled: Tensor) -> Tensor:
        """See `Layout`."""
        places = _places(self, x.shape[2:])
        index: list[Any] = [slice(None), slice(None)]
        inside = torch.ones([len(sampled)] + [1] * len(places), dtype=torch.bool)
        for dimension, place in reversed(list(enumerate(places))):
            view = [len(sampled)] + [1] * len(places)
            view[1 + dimension] = -1
            read, size = place[sampled % len(place)].view(view), x.shape[2 + dimension]
            inside = inside & (read < size)
            index.insert(2, read.clamp(max=size - 1).to(x.device))
            sampled = sampled // len(place)
        patches = x[tuple(index)]  # [N, C, positions, *kernel]
        if not inside.all():
            patches = patches.masked_fill(~inside.to(x.device), 0)  # what is read outside
        patches = patches.flatten(3).unflatten(1, (self.groups, -1))
        return patches.permute(1, 0, 3, 2, 4).flatten(1, 2)

    def outputs(self, y: Tensor, sampled: Tensor | None = None) -> Tensor:
        """See `Layout`."""
        y = y.flatten(2)
        if sampled is not None:
            y = y[:, :, sampled.to(y.device)]
        return y.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


@lru_cache(maxsize=256)
def _places(layer: Convolution, sizes: torch.Size) -> list[Tensor]:
    """Where each tap of each output position reads, [positions, taps] a dimension; the size where outside."""
    places = []
    for size, kernel, stride, before, after, step in zip(
        sizes, layer.kernel, layer.stride, layer.padding, layer.padding_after, layer.dilation, strict=True
    ):
        taps = step * torch.arange(kernel)
        if layer.transposed:
            length = (size - 1) * stride - before - after + step * (kernel - 1) + 1
            offset = torch.arange(length).unsqueeze(1) + before - taps
            read, inside = offset.div(stride, rounding_mode="floor"), offset % stride == 0
        else:
            length = (size + before + after - step * (kernel - 1) - 1) // stride + 1
            read = stride * torch.arange(length).unsqueeze(1) + taps - before
            inside = torch.ones_like(read, dtype=torch.bool)
        places.append(torch.where(inside & (read >= 0) & (read < size), read, size))
    return places


@dataclass(frozen=True)
class Linear:
    """A linear layer, or a product with a weight.

    Attributes:
        columns: Which input each channel and tap is, [channels, taps]: a flattened map has several taps.
        transposed: Whether the weight's rows are the inputs.
    """

    columns: Tensor
    transposed: bool

    def matrix(self, weight: Tensor) -> Tensor:
        """See `Layout`."""
        rows = weight.T if self.transposed else weight
        return rows[:, self.columns.to(weight.device)].unsqueeze(0)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `Layout`."""
        result = torch.empty_like(like)
        (result.T if self.transposed else result)[:, self.columns.to(like.device)] = matrix[0].to(like)
        return result

    def positions(self, x: Tensor) -> int:
        """See `Layout`."""
        return x.numel() // x.shape[-1]

    def sample(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """See `Layout`."""
        total = self.positions(x)
        return torch.randperm(total, generator=generator)[:count] if count < total else torch.arange(total)

    def inputs(self, x: Tensor, sampled: Tensor) -> Tensor:
        """See `Layout`."""
        rows = x.reshape(-1, x.shape[-1])[sampled.to(x.device)]
        return rows[:, self.columns.to(x.device)].unsqueeze(0)

    def outputs(self, y: Tensor, sampled: Tensor | None = None) -> Tensor:
        """See `Layout`."""
        rows = y.reshape(1, -1, y.shape[-1])
        return rows if sampled is None else rows[:, sampled.to(y.device)]


@dataclass(frozen=True)
class Reader:
    """A weight that reads prunable channels.

    Attributes:
        weight: Its name in `Topology.slots`.
        layouts: The operations that use it, by the node's name.
        slots: The slot of each channel, −1 where it stays, [blocks, channels].
        rows: Output channels of a block.
        taps: Columns of the weight for each channel.
        bias: Name of a bias of its own, which can take a change of the mean.
        means: Names of the running means of BatchNorm layers right behind it, which can take it too.
        centred: Whether anything can: a bias of its own, or BatchNorm.
    """

    weight: str
    layouts: dict[str, Layout]
    slots: Tensor
    rows: int
    taps: int
    bias: str | None
    means: tuple[str, ...]
    centred: bool

    @property
    def layout(self) -> Layout:
        """The weight's layout; it is the same in all operations that use it."""
        return next(iter(self.layouts.values()))

    @property
    def blocks(self) -> int:
        """Blocks of rows that read channels of their own."""
        return self.slots.shape[0]

    @property
    def channels(self) -> int:
        """Channels that a block reads."""
        return self.slots.shape[1]

    @property
    def columns(self) -> int:
        """Columns of a block's matrix."""
        return self.channels * self.taps


def find_readers(topology: Topology) -> tuple[list[Reader], list[str]]:
    """The readers of prunable channels, in the order of the network.

    Returns:
        The readers; and the operations that read prunable channels and have no rule here, such as the product of
        queries and keys: they keep their weights.
    """
    program, labels = topology.program, topology.labels
    nodes: dict[str, dict[str, fx.Node]] = defaultdict(dict)
    other: list[str] = []
    for node in program.graph.nodes:
        if node.name not in labels.reads:
            continue
        name = tensor_name(topology, weight_of(node))
        if name not in labels.readers:
            source = labels.outputs[node.all_input_nodes[0].name]
            if isinstance(source, Tensor) and (topology.slots_of(source) >= 0).any():
                other.append(node.name)
        elif (topology.slots[name, labels.readers[name]] >= 0).any():
            nodes[name][node.name] = node
    biases = Counter(
        tensor_name(topology, bound(node).get("bias")) for node in program.graph.nodes if node.op == "call_function"
    )
    readers: list[Reader] = []
    for name, users in nodes.items():
        reader = _reader(topology, name, list(users.values()), biases)
        if reader is None:
            other += users
        else:
            readers.append(reader)
    return readers, other


def bound(node: fx.Node) -> dict[str, Any]:
    """An operation's arguments by the names of its schema, with defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    values = {argument.name: argument.default_value for argument in schema.arguments}
    return values | dict(zip(values, node.args, strict=False)) | dict(node.kwargs)


def weight_of(node: fx.Node) -> Any:
    """The operand that stands for an operation's weight: of a product the second."""
    arguments = bound(node)
    return next((arguments[name] for name in ("weight", "other", "mat2") if name in arguments), None)


def tensor_name(topology: Topology, node: Any) -> str:
    """The parameter, buffer or folded tensor that an operand is; empty where it is none."""
    if not isinstance(node, fx.Node):
        return ""
    if node.name in topology.labels.folded:
        return node.name
    value = topology.labels.outputs.get(node.name)
    return value.name if isinstance(value, Parameter) else ""


def _reader(topology: Topology, name: str, nodes: list[fx.Node], biases: Counter[str]) -> Reader | None:
    """None where channels of one weight have different numbers of columns: there is no rule for that."""
    shape, dimension = topology.labels.shapes[name], topology.labels.readers[name]
    slots = topology.slots[name, dimension]
    kind = Program.operation(nodes[0])
    if kind.startswith("conv"):
        layouts: dict[str, Layout] = {node.name: _convolution(bound(node), shape) for node in nodes}
        groups = bound(nodes[0])["groups"]
        blocks, taps = slots.reshape(groups, -1), shape[2:].numel()
        rows = shape[1] if dimension == 0 else shape[0] // groups
    else:
        columns = _flattened(slots)
        if columns is None:
            return None
        transposed = dimension == 0
        layouts = {node.name: Linear(columns, transposed) for node in nodes}
        blocks, taps, rows = slots[columns[:, 0]].unsqueeze(0), columns.shape[1], shape[1 - dimension]
    bias = {tensor_name(topology, bound(node).get("bias")) for node in nodes}
    own_bias = bias.pop() if len(bias) == 1 else ""
    if biases[own_bias] != len(nodes):
        own_bias = ""
    norms = [_norm_behind(node) for node in nodes]
    means = [tensor_name(topology, bound(norm)["running_mean"]) for norm in norms if norm is not None]
    behind_norm = None not in norms
    return Reader(
        name,
        layouts,
        blocks,
        rows,
        taps,
        own_bias or None,
        tuple(mean for mean in dict.fromkeys(means) if mean) if behind_norm and not own_bias else (),
        bool(own_bias) or behind_norm,
    )


def _convolution(arguments: dict[str, Any], shape: torch.Size) -> Convolution:
    kernel = tuple(shape[2:])

    def each(name: str) -> tuple[int, ...]:
        value = arguments[name]
        values = list(value) if isinstance(value, list | tuple) else [value]
        return tuple(values * len(kernel) if len(values) == 1 else values)

    stride, dilation = each("stride"), each("dilation")
    transposed = "output_padding" in arguments
    if arguments["padding"] == "valid":
        before = after = (0,) * len(kernel)
    elif arguments["padding"] == "same":
        total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        before = tuple(each // 2 for each in total)
        after = tuple(each - each // 2 for each in total)
    else:
        before = after = each("padding")
    if transposed:  # a longer output is one with less cut from its end
        after = tuple(pad - more for pad, more in zip(after, each("output_padding"), strict=True))
    return Convolution(kernel, stride, before, after, dilation, arguments["groups"], transposed)


def _flattened(slots: Tensor) -> Tensor | None:
    """Which columns belong to each channel, [channels, taps]; None where channels have different numbers of them.

    Where a map was flattened a channel's columns are its positions, in the same order for all channels. Columns that
    stay are channels of one column each, if all are.
    """
    owned = slots[slots >= 0]
    counts = owned.unique(return_counts=True)[1]
    taps = int(counts[0])
    if (counts != taps).any() or (taps > 1 and len(owned) < len(slots)):
        return None
    if taps == 1:
        return torch.arange(len(slots)).unsqueeze(1)
    return slots.argsort(stable=True).view(-1, taps)


def _norm_behind(node: fx.Node) -> fx.Node | None:
    """The BatchNorm that alone sees an operation's result, and whose channels are its rows: tokens may be instead."""
    users = list(node.users)
    rows = Program.operation(node).startswith("conv") or len(Program.shape(node)) == 2
    return users[0] if rows and len(users) == 1 and Program.operation(users[0]) == "batch_norm" else None
