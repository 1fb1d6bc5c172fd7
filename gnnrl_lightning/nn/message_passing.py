"""The edge-featured graph convolution of GNN-RL, on quotient graphs."""

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing


class EdgeGCNConv(MessagePassing):
    r"""Graph convolution that multiplies a neighbour's features by the edge's (GNN-RL, eq. 4).

    .. math:: h_i' = \sum_{j \in N(i) \cup \{i\}} \frac{1}{\sqrt{d_i d_j}} W (h_j \odot e_{ij}) + b

    d counts incoming edges and one self-loop, whose edge feature is all ones. The graph may be a quotient: then
    `copies` says how many nodes of class j point at one node of class i, and the result is that of the expanded graph.

    Args:
        in_channels: Size of node and edge features.
        out_channels: Size of the result.

    Shapes:
        x [..., V, in_channels], edge_index [2, E], edge_attr [..., E, in_channels], copies [..., E] →
        [..., V, out_channels], with at most one leading dimension.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(aggr="add", node_dim=-2)
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, copies: Tensor) -> Tensor:
        """One round of message passing."""
        source, target = edge_index
        copies = copies.to(x).expand(*x.shape[:-2], -1)
        degree = x.new_ones(x.shape[:-1]).index_add(-1, target, copies)  # [..., V]
        scale = copies * (degree[..., source] * degree[..., target]).rsqrt()
        neighbours = self.propagate(edge_index, x=x, edge_attr=edge_attr, scale=scale.unsqueeze(-1))
        return self.linear(neighbours + x / degree.unsqueeze(-1))

    def message(self, x_j: Tensor, edge_attr: Tensor, scale: Tensor) -> Tensor:
        """What an edge carries, [..., E, in_channels]; W is linear, so it is applied to the sum."""
        return scale * x_j * edge_attr

    def __repr__(self) -> str:
        return f"EdgeGCNConv({self.linear.in_features}, {self.linear.out_features})"


class LearnedPooling(nn.Module):
    """Weighted sum over the channel nodes of a graph, one learned weight a node (GNN-RL, eq. 5).

    Pruned nodes count zero. In a quotient graph the nodes of a class share one feature vector, so a class contributes
    its vector times the sum of the weights of the nodes that are left; nodes are ordered by importance, so those are
    the first. The number of weights stays that of the unpruned graph.

    Args:
        sizes: Nodes that each class stands for in the unpruned graph, [V].

    Shapes:
        x [..., V, F], present [..., V] → [..., F], where `present` counts the nodes left of each class.
    """

    start: Tensor
    """Index of the first weight of each class, [V]."""

    def __init__(self, sizes: Tensor):
        super().__init__()
        self.register_buffer("start", torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])[:-1], persistent=False)
        # A class counts as much as any other at first, however many channels it stands for.
        self.weight = nn.Parameter(1.0 / (max(len(sizes), 1) * sizes.repeat_interleave(sizes)))

    def coefficients(self, present: Tensor, classes: Tensor | slice = slice(None)) -> Tensor:
        """Sum of the weights of the nodes left in each class, [..., V]."""
        start = self.start[classes]
        running = torch.cat([self.weight.new_zeros(1), self.weight.cumsum(0)])
        return running[start + present] - running[start]

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Embeds the graph."""
        return (self.coefficients(present).unsqueeze(-1) * x).sum(-2)
