"""Readers: operations that sum over prunable channels, and which channels these are."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from gnnrl_lightning.reconstruction.layouts import Layout, Linear, convolution
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.program import Program
from gnnrl_lightning.topology.values import Parameter


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
        if name not in labels.readers or name in labels.unrefitted:
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
    value = topology.labels.outputs.get(node.name)
    return value.name if isinstance(value, Parameter) else ""


def _reader(topology: Topology, name: str, nodes: list[fx.Node], biases: Counter[str]) -> Reader | None:
    """None where channels of one weight have different numbers of columns: there is no rule for that."""
    shape, dimension = topology.labels.shapes[name], topology.labels.readers[name]
    slots = topology.slots[name, dimension]
    kind = Program.operation(nodes[0])
    if kind.startswith("conv"):
        layouts: dict[str, Layout] = {node.name: convolution(bound(node), shape) for node in nodes}
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
