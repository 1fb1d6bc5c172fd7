"""A network as its reader draws it: layers, the joins where branches meet, and what each of them reads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from gnnrl_lightning.core.files import write_json
from gnnrl_lightning.topology.label_vectors import varies
from gnnrl_lightning.topology.movement import JOIN
from gnnrl_lightning.topology.program import Program
from gnnrl_lightning.topology.rules import COMBINE
from gnnrl_lightning.topology.topology import Topology

JOINS = frozenset({"add", "cat", "mul"})
"""The kinds of layers that hold no weights."""


@dataclass(frozen=True)
class Layer:
    """What computes with weights or activations, or joins branches.

    Attributes:
        name: Path of the module that issued it; that of the operation where there is none.
        kind: "convolution", "depth-wise", "linear", "product", or one of `JOINS`.
        width: Channels that it writes in the whole network.
        kept: Channels that it writes in the pruned one.
        reads: Indices of the layers whose results reach it with no other layer in between, in the order of operands.
    """

    name: str
    kind: str
    width: int
    kept: int
    reads: tuple[int, ...]


def outline(topology: Topology, widths: Tensor) -> list[Layer]:
    """The layers of a network and the joins of its branches, in the order of execution.

    Activations, normalisation, pooling and what only moves data belong to the layer before them.

    Args:
        topology: The network.
        widths: Channels that each group keeps, [G].
    """
    layers: list[Layer] = []
    sources: dict[fx.Node, tuple[int, ...]] = {}  # the layers that an operation's result comes from
    for node in topology.program.graph.nodes:
        operands = [found for argument in node.all_input_nodes if (found := sources.get(argument))]
        reads = tuple(dict.fromkeys(index for operand in operands for index in operand))
        result = topology.labels.outputs.get(node.name)
        if not isinstance(result, (Tensor, list, tuple)):
            reads = ()  # made of sizes and parameters alone
        elif kind := _kind(topology, node, operands):
            name = Program.module_path(node) or Program.operation(node)
            fixed, counts = topology.channels(node.name, _dimension(result))
            width, kept = (fixed + int(counts @ each) for each in (topology.full_widths(), widths))
            layers.append(Layer(name, kind, width, kept, reads))
            reads = (len(layers) - 1,)
        sources[node] = reads
    return layers


def write_layers(path: Path, topology: Topology, widths: Tensor) -> None:
    """Writes the outline of a network pruned to widths [G] as JSON."""
    write_json(path, [asdict(layer) for layer in outline(topology, widths)])


def read_layers(path: Path) -> list[Layer]:
    """Reads what `write_layers` wrote."""
    layers = json.loads(path.read_text(encoding="utf-8"))
    return [Layer(**{**layer, "reads": tuple(layer["reads"])}) for layer in layers]


def _kind(topology: Topology, node: fx.Node, operands: list[tuple[int, ...]]) -> str | None:
    """Which kind of layer an operation is; None for what belongs to the layer before it."""
    name = Program.operation(node)
    if name.startswith("conv") and node.name in topology.operations:
        groups = node.args[6] if len(node.args) > 6 else 1
        return "depth-wise" if groups != 1 and Program.shape(node.args[1])[1] == 1 else "convolution"
    if node.name in topology.operations:
        return "linear" if name == "linear" else "product"
    if name in JOIN and len(operands) > 1:
        return "cat"
    # An activation written out, such as x · sigmoid(x), joins nothing.
    if name in COMBINE and len({frozenset(operand) for operand in operands}) > 1:
        return "mul" if name.startswith(("mul", "div")) else "add"
    return None


def _dimension(labels: Any) -> int:
    """Where the channels of an activation lie; a single one, or one that has no rule, where images have theirs."""
    images = 1 if labels.dim() == 4 else max(labels.dim() - 1, 0)
    return next((d for d in range(1, labels.dim()) if varies(labels, d)), images)
