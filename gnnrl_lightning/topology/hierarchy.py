"""The hierarchical graph of GNN-RL (ICML 2022, section 3): motifs below, the network of hidden states above.

Level 1 holds one graph for each motif: a k×k convolution that reads C channels is a split node, C channel nodes, C
filtered nodes and a merge node. Level 2 holds the network: hidden states are nodes, operations are edges, and the edge
of a convolution carries its motif's embedding. A convolution with C outputs makes C channel nodes and a concat node.

Channels of one layer are structurally identical, so both levels are kept as *quotient* graphs: one node for each class
of identical nodes, with its multiplicity. Pruning changes multiplicities only, so the structure is built once.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.topology.program import Program
from gnnrl_lightning.topology.rules import ACTIVATION, COMBINE, POOL
from gnnrl_lightning.topology.topology import Topology

NODE_KINDS = ("input", "channel", "concat", "norm", "activation", "pool", "linear")
EDGE_KINDS = ("motif", "concat", "norm", "activation", "pool", "linear", "add", "mul")
MOTIF_KINDS = ("convolution", "depth-wise", "point-wise")
_CONVOLUTIONS = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split())
_NORMS = frozenset("batch_norm instance_norm layer_norm group_norm".split())


@dataclass(frozen=True)
class Motif:
    """A primitive operation as a level-1 graph: equal motifs are embedded once.

    Attributes:
        kind: One of `MOTIF_KINDS`.
        kernel: Positions of its kernel, 9 for 3×3.
        stride: Along the first spatial dimension.
        channels: Input channels before pruning.
    """

    kind: str
    kernel: int
    stride: int
    channels: int


@dataclass(frozen=True)
class HierarchicalGraph:
    """Both levels as quotient graphs. V nodes and E edges on level 2, K convolutions, G channel groups.

    Attributes:
        motifs: The distinct motifs.
        node_kind: Index into `NODE_KINDS`, [V].
        node_fixed: Channels of a node's class that never change, [V]; 1 for all but channel nodes and linear layers.
        node_counts: Channels per channel of each group, [V, G]; multiplicity = node_fixed + node_counts·w.
        node_features: Static numbers of each node in about [0, 1], [V, F]: log2 of channels, log2 of positions, share
            of the network's MACs, place in the order of execution.
        edges: Source and target, [2, E].
        edge_kind: Index into `EDGE_KINDS`, [E].
        edge_motif: For motif edges the convolution, an index below K, else −1; [E].
        conv_motif: Motif of each convolution, [K].
        conv_fixed: Input channels that never change, [K].
        conv_counts: Input channels per channel of each group, [K, G].
        full_widths: Widths of the unpruned network, [G].
        widths: Widths that `counts` is for where it gets none, [G].
    """

    motifs: tuple[Motif, ...]
    node_kind: Tensor
    node_fixed: Tensor
    node_counts: Tensor
    node_features: Tensor
    edges: Tensor
    edge_kind: Tensor
    edge_motif: Tensor
    conv_motif: Tensor
    conv_fixed: Tensor
    conv_counts: Tensor
    full_widths: Tensor
    widths: Tensor

    def multiplicities(self, widths: Tensor | None = None) -> Tensor:
        """How many nodes each level-2 class stands for, [..., V] for widths [..., G]; unpruned where None."""
        w = self.full_widths if widths is None else widths
        return self.node_fixed + (w.unsqueeze(-2) * self.node_counts).sum(-1)

    def conv_channels(self, widths: Tensor | None = None) -> Tensor:
        """Input channels of each convolution, [..., K] for widths [..., G]; unpruned where None."""
        w = self.full_widths if widths is None else widths
        return self.conv_fixed + (w.unsqueeze(-2) * self.conv_counts).sum(-1)

    def counts(self, widths: Tensor | None = None) -> dict[str, tuple[int, int]]:
        """Nodes and edges of the network as three graphs, for widths [G]; for the graph's own where None.

        `plain` repeats a convolution's motif for every filter, `hierarchical` holds one for every convolution (the
        paper's Table 3: 394,412 / 581,332 and 12,460 / 20,221 for ResNet-110), `quotient` is what the encoder runs on.
        """
        w = self.widths if widths is None else widths
        size, channels = self.multiplicities(w), self.conv_channels(w)
        fans = self.edge_kind.new_tensor([EDGE_KINDS.index("motif"), EDGE_KINDS.index("concat")])
        many = torch.isin(self.edge_kind, fans)
        # An edge to or from a class of channel nodes stands for one edge for each of them.
        copies = torch.maximum(size[self.edges[0]], size[self.edges[1]])
        nodes, edges = int(size.sum()), int(torch.where(many, copies, 1).sum())
        filters = size[self.edges[1]][self.edge_motif >= 0]  # in the order of the convolutions
        return {
            "plain": (
                nodes + int(((2 * channels + 2) * filters).sum()),
                edges + int((3 * channels * filters).sum()),
            ),
            "hierarchical": (nodes + int((2 * channels + 2).sum()), edges + int(3 * channels.sum())),
            "quotient": (len(self.node_kind) + 4 * len(self.motifs), self.edges.shape[1] + 3 * len(self.motifs)),
        }


def hierarchical_graph(topology: Topology, widths: Tensor | None = None) -> HierarchicalGraph:
    """Builds the hierarchical graph of a network.

    Pooling, normalisation and linear layers are a node and an edge each, and so is an activation that directly follows
    a convolution. What joins two branches adds an edge from the older state to the younger one. Operations that only
    move data are no hidden states of their own.

    Args:
        topology: The network.
        widths: Channels that each group keeps, [G], for `counts`; all where None. No structure depends on them.

    Raises:
        UserError: If the widths are not those of a pruned network.
    """
    full = topology.full_widths()
    widths = full if widths is None else widths
    if widths.shape != full.shape or ((widths < 1) | (widths > full)).any():
        raise UserError(f"widths={widths.tolist()} must be one number a group, from 1 to {full.tolist()}.")
    builder = _Builder(topology)
    for node in topology.program.graph.nodes:
        builder.add(node)
    return builder.finish(widths)


class _Builder:
    def __init__(self, topology: Topology):
        self.topology = topology
        shares = topology.operation_macs() / topology.macs()
        self.share = dict(zip(topology.operations, shares.tolist(), strict=True))
        self.state: dict[fx.Node, int] = {}
        self.kinds: list[int] = []
        self.fixed: list[int] = []
        self.counts: list[Tensor] = []
        self.features: list[list[float]] = []
        self.edges: list[tuple[int, int, int, int]] = []
        self.motifs: dict[Motif, int] = {}
        self.convs: list[tuple[int, int, Tensor]] = []

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if node.name not in self.topology.program.state and node.name not in self.topology.program.constants:
                self.state[node] = self._node("input", node)
            return
        inputs = [self.state[argument] for argument in node.all_input_nodes if argument in self.state]
        if node.op == "output" or not inputs:
            return
        current, name = max(inputs), Program.operation(node)
        if name in _CONVOLUTIONS:
            current = self._convolution(node, current)
        elif name in _NORMS:
            current = self._step("norm", node, current)
        elif name == "linear":
            current = self._linear(node, current)
        elif name in POOL and not name.startswith("adaptive"):
            current = self._step("pool", node, current)
        elif name in ACTIVATION and self.kinds[current] == NODE_KINDS.index("concat"):
            current = self._step("activation", node, current)
        elif name in {"cat", "concat"}:
            target = self._node("concat", node)
            for source in dict.fromkeys(inputs):
                self._edge(source, target, "add")
            current = target
        elif name in COMBINE:
            kind = "mul" if name.startswith(("mul", "div")) else "add"
            for source in dict.fromkeys(inputs):
                if source != current:
                    self._edge(source, current, kind)
        self.state[node] = current

    def _convolution(self, node: fx.Node, source: int) -> int:
        program = self.topology.program
        images, weight = node.all_input_nodes[:2]
        kernel = weight.meta["val"].shape[2:].numel()
        reads = program.state.get(weight.name) in self.topology.labels.readers
        kind = "depth-wise" if not reads else "point-wise" if kernel == 1 else "convolution"
        stride: Any = node.args[3] if len(node.args) > 3 else 1
        fixed, counts = self.topology.channels(images.name)
        channels = int(fixed + counts @ self.topology.full_widths())
        motif = Motif(kind, kernel, stride[0] if isinstance(stride, (list, tuple)) else stride, channels)
        self.convs.append((self.motifs.setdefault(motif, len(self.motifs)), fixed, counts))
        outputs = self._node("channel", node, *self.topology.channels(node.name))
        self._edge(source, outputs, "motif", len(self.convs) - 1)
        concat = self._node("concat", node)
        self._edge(outputs, concat, "concat")
        return concat

    def _linear(self, node: fx.Node, source: int) -> int:
        """One node; a class of nodes where its channels can be pruned, so that the agent sees how many are left."""
        fixed, counts = self.topology.channels(node.name, len(Program.shape(node)) - 1)
        target = self._node("linear", node, fixed, counts) if counts.any() else self._node("linear", node)
        self._edge(source, target, "linear")
        return target

    def _step(self, kind: str, node: fx.Node, source: int) -> int:
        target = self._node(kind, node)
        self._edge(source, target, kind)
        return target

    def _edge(self, source: int, target: int, kind: str, conv: int = -1) -> None:
        self.edges.append((source, target, EDGE_KINDS.index(kind), conv))

    def _node(self, kind: str, node: fx.Node, fixed: int = 1, counts: Tensor | None = None) -> int:
        shape = Program.shape(node)
        channels = shape[1] if len(shape) > 1 else 1
        positions = max(1, shape[2:].numel())
        self.kinds.append(NODE_KINDS.index(kind))
        self.fixed.append(fixed)
        self.counts.append(torch.zeros(len(self.topology.groups), dtype=torch.long) if counts is None else counts)
        log = torch.tensor([channels, positions]).log2() / 16
        share = self.share.get(node.name, 0.0) if kind in {"channel", "linear"} else 0.0
        self.features.append([*log.tolist(), share])
        return len(self.kinds) - 1

    def finish(self, widths: Tensor) -> HierarchicalGraph:
        edges = torch.tensor(self.edges, dtype=torch.long).view(-1, 4).T
        order = torch.linspace(0, 1, len(self.kinds)).unsqueeze(1)
        empty = torch.zeros(0, len(self.topology.groups), dtype=torch.long)
        return HierarchicalGraph(
            motifs=tuple(self.motifs),
            node_kind=torch.tensor(self.kinds),
            node_fixed=torch.tensor(self.fixed),
            node_counts=torch.stack(self.counts),
            node_features=torch.cat([torch.tensor(self.features), order], 1),
            edges=edges[:2],
            edge_kind=edges[2],
            edge_motif=edges[3],
            conv_motif=torch.tensor([motif for motif, _, _ in self.convs], dtype=torch.long),
            conv_fixed=torch.tensor([fixed for _, fixed, _ in self.convs], dtype=torch.long),
            conv_counts=torch.stack([counts for *_, counts in self.convs]) if self.convs else empty,
            full_widths=self.topology.full_widths(),
            widths=widths,
        )
