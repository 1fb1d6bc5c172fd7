"""The policy and the value of GNN-RL on top of the m-GNN (ICML 2022, eq. 6 and 7)."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from gnnrl_lightning.nn.encoder import GraphEncoder
from gnnrl_lightning.topology.hierarchy import HierarchicalGraph


class ActorCritic(nn.Module):
    """Embeds the network, gives a distribution of ratios and a value.

    The mean of each group's ratio is a sum: of a head shared by all groups, on the embeddings of the group's channel
    nodes and of the network; of the paper's MLP from the network's embedding to all groups at once; and of one learned
    offset a group. The first carries over what is learned on one group to those like it, the second follows the state
    of the network, the third learns within few episodes what holds in every state.

    Actions are z ~ N(mean, std² · C) before the logistic function, so that ratios lie in (0, 1) and the log-probability
    is that of what is executed. C correlates groups that stand for similar layers (`similarity`): a few episodes then
    say what a stage as a whole can lose, which is most of what there is to know, before they tell its layers apart.

    Args:
        encoder: The m-GNN.
        hidden_size: Size of the heads' hidden layer (paper: 200).
        initial_ratio: Ratio that the untrained policy proposes for a group of two layers, one writing and one reading.
        coupling: How strongly a group that couples more layers is spared at first: its odds are divided by
            (layers / 2)^coupling.
        correlation: Correlation of the actions of two groups that are alike in all, in [0, 1).
    """

    membership: Tensor
    initial_mean: Tensor
    cholesky: Tensor

    def __init__(
        self, encoder: GraphEncoder, hidden_size: int, initial_ratio: float, coupling: float, correlation: float
    ):
        super().__init__()
        self.encoder = encoder
        size, groups = encoder.embedding_size, len(encoder.graph.full_widths)
        self.group_head = _head(2 * size, hidden_size, 1, gain=0.01)
        self.graph_head = _head(size, hidden_size, groups, gain=0.01)
        self.offset = nn.Parameter(torch.zeros(groups))
        self.value_head = _head(size, hidden_size, 1, gain=1.0)
        writers = (encoder.graph.node_counts.T > 0).float()  # [G, V]
        self.register_buffer("membership", writers / writers.sum(1, keepdim=True).clamp(min=1), persistent=False)
        layers = coupled_layers(encoder.graph)
        odds = initial_ratio / (1 - initial_ratio) * (layers / 2).clamp(min=1) ** -coupling
        self.register_buffer("initial_mean", odds.log())
        mixed = (1 - correlation) * torch.eye(groups) + correlation * similarity(encoder.graph)
        self.register_buffer("cholesky", torch.linalg.cholesky(mixed), persistent=False)

    def distribution(self, mean: Tensor, std: float) -> "SquashedNormal":
        """The policy's distribution of ratios around these means, [B, G]."""
        return SquashedNormal(mean, std * self.cholesky)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Means before the logistic function [B, G] and values [B] for the fractions that groups keep, [B, G]."""
        return self.heads(*self.embed(observations))

    def embed(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the networks [B, embedding] and of their groups [B, G, embedding]."""
        widths = (observations * self.encoder.graph.full_widths).round().long()
        network, states = self.encoder(widths)
        return network, self.membership @ states

    def heads(self, network: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Means [B, G] and values [B] of what is embedded."""
        context = torch.cat([groups, network.unsqueeze(1).expand_as(groups)], -1)
        mean = self.initial_mean + self.offset + self.group_head(context).squeeze(-1) + self.graph_head(network)
        return mean, self.value_head(network).squeeze(-1)


class SquashedNormal:
    """Ratios sigmoid(z), z ~ N(mean, L Lᵀ), with their log-probability.

    Args:
        mean: Of z, [B, G].
        scale_tril: L, lower triangular, [G, G].
    """

    def __init__(self, mean: Tensor, scale_tril: Tensor):
        self.base = MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Ratios in (0, 1), [B, G]."""
        noise = torch.randn(self.base.mean.shape, generator=generator).to(self.base.mean)
        return torch.sigmoid(self.base.mean + noise @ self.base.scale_tril[0].T)

    def log_prob(self, ratios: Tensor) -> Tensor:
        """Log-density of ratios, [B]."""
        ratios = ratios.clamp(1e-6, 1 - 1e-6)
        # d sigmoid(z) / dz = ratio · (1 − ratio)
        return self.base.log_prob(torch.logit(ratios)) - (ratios * (1 - ratios)).log().sum(-1)


def similarity(graph: HierarchicalGraph, length: float = 0.15) -> Tensor:
    """How alike the layers of two groups are, in (0, 1], [G, G].

    A Gaussian kernel over their channels, resolution, share of the MACs, depth, and number of coupled layers.

    Args:
        graph: The network.
        length: Distance at which similarity has fallen to 0.6; a quarter of the resolution is 0.125 away.
    """
    writers = (graph.node_counts.T > 0).float()  # [G, V]
    features = writers @ graph.node_features / writers.sum(1, keepdim=True).clamp(min=1)
    layers = (1 + coupled_layers(graph)).log() / 4
    features = torch.cat([features, layers.unsqueeze(1)], 1)
    return torch.exp(-(torch.cdist(features, features) ** 2) / (2 * length**2))


def coupled_layers(graph: HierarchicalGraph) -> Tensor:
    """How many convolutions write or read the channels of each group, [G]."""
    return (graph.node_counts > 0).sum(0).float() + (graph.conv_counts > 0).sum(0)


def _head(size: int, hidden: int, out: int, gain: float) -> nn.Sequential:
    layers = nn.Linear(size, hidden), nn.Linear(hidden, out)
    for layer, layer_gain in zip(layers, (math.sqrt(2), gain), strict=True):
        nn.init.orthogonal_(layer.weight, layer_gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])
