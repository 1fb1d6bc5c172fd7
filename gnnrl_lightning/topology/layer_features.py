"""What AMC knows of a layer: numbers for each channel group, of the layer that makes its channels."""

from typing import Any

import torch
from torch import Tensor, fx

from gnnrl_lightning.topology.program import Program
from gnnrl_lightning.topology.topology import Topology

LAYER_FEATURES = ("n", "c", "h", "w", "stride", "k", "cost")


def layer_features(topology: Topology) -> Tensor:
    """Output and input channels, height and width of the output, stride, kernel size, and multiply-accumulates.

    Of the first layer that writes the channels of a group; where none does, of the first that reads them.

    Returns:
        One row a group, [G, 7], in the units of the network.
    """
    costs = dict(zip(topology.operations, topology.operation_macs().tolist(), strict=True))
    written: dict[int, list[float]] = {}
    read: dict[int, list[float]] = {}
    for node in topology.program.graph.nodes:
        if node.name in costs and Program.operation(node).startswith(("conv", "linear")):
            row = _row(node, costs[node.name])
            for found, of in ((written, node), (read, node.all_input_nodes[0])):
                for group in _groups(topology, of):
                    found.setdefault(group, row)
    nothing = [0.0] * len(LAYER_FEATURES)
    return torch.tensor([written.get(g) or read.get(g) or nothing for g in range(len(topology.groups))])


def _groups(topology: Topology, node: fx.Node) -> list[int]:
    """The groups whose channels are in an operation's result."""
    return sorted({int(group) for _, counts in topology.lengths(node.name) for group in counts.nonzero().flatten()})


def _row(node: fx.Node, cost: float) -> list[float]:
    images, weight = map(Program.shape, node.all_input_nodes[:2])
    out, kernel = Program.shape(node), weight[2:]
    stride: Any = node.args[3] if kernel and len(node.args) > 3 else 1
    stride = stride[0] if isinstance(stride, (list, tuple)) else stride
    channel = 1 if kernel else len(out) - 1
    height, width = (out[2], out[-1]) if kernel else (1, 1)
    return [float(x) for x in (out[channel], images[channel], height, width, stride, (*kernel, 1)[0], cost)]
