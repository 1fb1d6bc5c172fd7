"""The multi-stage GNN of GNN-RL (ICML 2022, eq. 1 to 5): motifs are embedded first, then the network made of them."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError, require_whole
from gnnrl_lightning.nn.message_passing import EdgeGCNConv, LearnedPooling
from gnnrl_lightning.topology.hierarchy import EDGE_KINDS, MOTIF_KINDS, NODE_KINDS, HierarchicalGraph

MOTIF_EDGES = torch.tensor([[0, 1, 2], [1, 2, 3]])
"""A motif as a quotient graph: split → channels → filtered channels → merge."""


class MotifEncoder(nn.Module):
    """Level 1: embeds each convolution's motif (eq. 1), once for all convolutions that are alike.

    Args:
        graph: Gives the motifs.
        size: Size of features and of the embedding.
        hidden: Size inside.
    """

    kind: Tensor
    static: Tensor

    def __init__(self, graph: HierarchicalGraph, size: int, hidden: int):
        super().__init__()
        self.node = nn.Embedding(4, size)
        self.edge = nn.Embedding(3 * len(MOTIF_KINDS), size)
        self.numbers = nn.Linear(3, size)
        self.conv = EdgeGCNConv(size, hidden)
        channels = torch.tensor([motif.channels for motif in graph.motifs], dtype=torch.long)
        self.pool = LearnedPooling(_class_sizes(channels).flatten())
        self.linear = nn.Linear(hidden, size)
        kinds = torch.tensor([MOTIF_KINDS.index(motif.kind) for motif in graph.motifs], dtype=torch.long)
        numbers = [[motif.kernel / 9, motif.stride / 2] for motif in graph.motifs]
        self.register_buffer("kind", kinds, persistent=False)
        self.register_buffer("static", torch.tensor(numbers).view(-1, 2), persistent=False)

    def forward(self, motif: Tensor, channels: Tensor) -> Tensor:
        """Embeds motifs.

        Args:
            motif: Index of each motif, [U].
            channels: Input channels that it has now, [U].

        Returns:
            Embeddings, [U, size].
        """
        numbers = torch.cat([self.static[motif], channels.unsqueeze(-1).float().log2() / 16], -1)
        x = self.node.weight + self.numbers(numbers).unsqueeze(1)  # [U, 4, size]
        edges = self.edge(self.kind[motif].unsqueeze(-1) * 3 + torch.arange(3, device=motif.device))
        copies = torch.ones(len(motif), 3, device=motif.device)
        copies[:, 2] = channels
        h = torch.relu(self.conv(x, MOTIF_EDGES.to(motif.device), edges, copies))
        classes = 4 * motif.unsqueeze(-1) + torch.arange(4, device=motif.device)
        weights = self.pool.coefficients(_class_sizes(channels), classes)
        return torch.tanh(self.linear((weights.unsqueeze(-1) * h).sum(1)))


class GraphEncoder(nn.Module):
    """The m-GNN: a network's embedding and one for each of its hidden states (eq. 2).

    Only the pooling weights (eq. 5) belong to one network; all other parameters carry over to any other.

    Args:
        graph: The network.
        feature_size: Size of node and edge features (paper: 20).
        hidden_size: Size between the layers (paper: 50).
        embedding_size: Size of the embeddings (paper: 50).
        num_layers: Rounds of message passing on level 2; each sees one operation further upstream.
        features: `learned` for deterministic features, `random` for the paper's normal ones, drawn once.
    """

    _full: Tensor
    _random: Tensor

    def __init__(
        self,
        graph: HierarchicalGraph,
        feature_size: int = 20,
        hidden_size: int = 50,
        embedding_size: int = 50,
        num_layers: int = 2,
        features: str = "learned",
    ):
        super().__init__()
        if features not in ("learned", "random"):
            raise UserError(f"agent.encoder.features={features} must be learned or random.")
        sizes = {"feature_size": feature_size, "hidden_size": hidden_size, "embedding_size": embedding_size}
        for name, value in (sizes | {"num_layers": num_layers}).items():
            require_whole(f"agent.encoder.{name}", value, 1)
        self.graph = graph
        self.motif = MotifEncoder(graph, feature_size, hidden_size)
        self.node = nn.Embedding(len(NODE_KINDS), feature_size)
        self.edge = nn.Embedding(len(EDGE_KINDS), feature_size)
        self.numbers = nn.Linear(graph.node_features.shape[1] + 1, feature_size)
        widths = [feature_size] + [hidden_size] * num_layers
        self.convs = nn.ModuleList(EdgeGCNConv(a, b) for a, b in pairwise(widths))
        self.edge_sizes = nn.ModuleList(nn.Linear(feature_size, size) for size in widths[1:-1])
        self.pool = LearnedPooling(graph.multiplicities())
        self.linear = nn.Linear(hidden_size, embedding_size)
        self.embedding_size = embedding_size
        self.register_buffer("_full", graph.multiplicities().float(), persistent=False)
        drawn = len(graph.node_kind) if features == "random" else 0
        if drawn:  # they take the place of what would be learned of nodes, and DDP wants every parameter used
            self.node.requires_grad_(False)
            self.numbers.requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("_random", torch.randn(drawn, feature_size, generator=generator))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GraphEncoder":
        """Moves the graph with the parameters, e.g. to a GPU."""
        moved = {field.name: getattr(self.graph, field.name) for field in fields(self.graph)}
        moved = {name: fn(value) for name, value in moved.items() if isinstance(value, Tensor)}
        self.graph = replace(self.graph, **moved)
        return super()._apply(fn, recurse)

    def take(self, state: dict[str, Tensor]) -> None:
        """Takes over what another network's encoder has learned; pooling weights are the network's own.

        Args:
            state: The other encoder's `state_dict`.

        Raises:
            UserError: If it is of other sizes.
        """
        pools = {f"{name}.weight" for name, each in self.named_modules() if isinstance(each, LearnedPooling)}
        for name, own in self.state_dict().items():
            if name in pools or name == "_random":
                continue
            other = state.get(name)
            if other is None or other.shape != own.shape:
                shape = "missing" if other is None else f"of shape {tuple(other.shape)}"
                raise UserError(f"{name} is {shape} there and of shape {tuple(own.shape)} here")
            own.copy_(other)

    def forward(self, widths: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds the network at these widths.

        Args:
            widths: Channels that each group keeps, [B, G].

        Returns:
            Embeddings of the network [B, embedding_size] and of its hidden states [B, V, embedding_size].
        """
        graph = self.graph
        present = graph.multiplicities(widths)  # [B, V]
        edges = self.edge(graph.edge_kind).repeat(len(widths), 1, 1)
        convolves = graph.edge_motif >= 0
        edges[:, convolves] = self._motifs(widths)[:, graph.edge_motif[convolves]]
        if len(self._random):
            x = self._random.expand(len(widths), -1, -1)
        else:
            x = self.node(graph.node_kind) + self.numbers(self._numbers(present))
        # One concat node collects from every channel node that is left; every other edge is one.
        collects = graph.edge_kind == EDGE_KINDS.index("concat")
        copies = torch.where(collects, present[:, graph.edges[0]], 1)
        for layer, conv in enumerate(self.convs):
            features = self.edge_sizes[layer - 1](edges) if layer else edges
            x = torch.relu(conv(x, graph.edges, features, copies))
        states = torch.tanh(self.linear(x))
        return torch.tanh(self.linear(self.pool(x, present))), states

    def _numbers(self, present: Tensor) -> Tensor:
        static = self.graph.node_features.expand(len(present), -1, -1)
        return torch.cat([static, (present / self._full).unsqueeze(-1)], -1)

    def _motifs(self, widths: Tensor) -> Tensor:
        """Embedding of every convolution's motif, [B, K, feature_size]; equal motifs are computed once."""
        channels = self.graph.conv_channels(widths)
        rows = torch.stack((self.graph.conv_motif.expand_as(channels), channels), -1).flatten(0, 1)
        distinct, place = rows.unique(dim=0, return_inverse=True)
        return self.motif(distinct[:, 0], distinct[:, 1])[place].view(*channels.shape, self.edge.embedding_dim)


def _class_sizes(channels: Tensor) -> Tensor:
    """Nodes of a motif's four classes, [..., 4]."""
    one = torch.ones_like(channels)
    return torch.stack((one, channels, channels, one), -1)
