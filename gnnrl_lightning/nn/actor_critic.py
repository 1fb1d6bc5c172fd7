"""The policy and the value of GNN-RL on top of the m-GNN (ICML 2022, eq. 6 and 7)."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from gnnrl_lightning.nn.encoder import GraphEncoder


class ActorCritic(nn.Module):
    """Embeds the network, gives a distribution of ratios and a value.

    The mean of each group's ratio is the sum of two heads: one shared by all groups, on the embeddings of the group's
    channel nodes and of the network, and the paper's MLP from the network's embedding to all groups at once. The first
    carries over what is learned on one group to those like it, the second tells them apart.

    Actions are z ~ N(mean, std²) before the logistic function, so that ratios lie in (0, 1) and the log-probability is
    that of what is executed.

    Args:
        encoder: The m-GNN.
        hidden_size: Size of the heads' hidden layer (paper: 200).
        initial_ratio: Ratio that the untrained policy proposes for a group of two layers, one writing and one reading.
        coupling: How strongly a group that couples more layers is spared at first: its odds are divided by
            (layers / 2)^coupling.
    """

    def __init__(self, encoder: GraphEncoder, hidden_size: int, initial_ratio: float, coupling: float):
        super().__init__()
        self.encoder = encoder
        size, groups = encoder.embedding_size, len(encoder.graph.full_widths)
        self.group_head = _head(2 * size, hidden_size, 1, gain=0.01)
        self.graph_head = _head(size, hidden_size, groups, gain=0.01)
        self.value_head = _head(size, hidden_size, 1, gain=1.0)
        writers = (encoder.graph.node_counts.T > 0).float()  # [G, V]
        self.register_buffer("membership", writers / writers.sum(1, keepdim=True).clamp(min=1), persistent=False)
        layers = writers.sum(1) + (encoder.graph.conv_counts.T > 0).sum(1)
        odds = initial_ratio / (1 - initial_ratio) * (layers / 2).clamp(min=1) ** -coupling
        self.register_buffer("initial_mean", odds.log(), persistent=False)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Means before the logistic function [B, G] and values [B] for the fractions that groups keep, [B, G]."""
        widths = (observations * self.encoder.graph.full_widths).round().long()
        network, states = self.encoder(widths)
        groups = self.membership @ states  # [B, G, embedding]
        context = torch.cat([groups, network.unsqueeze(1).expand_as(groups)], -1)
        mean = self.initial_mean + self.group_head(context).squeeze(-1) + self.graph_head(network)
        return mean, self.value_head(network).squeeze(-1)


class SquashedNormal:
    """Independent ratios sigmoid(z), z ~ N(mean, std²), with their log-probability.

    Args:
        mean: Of z, [B, G].
        std: Of z.
    """

    def __init__(self, mean: Tensor, std: float):
        self.base = Independent(Normal(mean, std), 1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Ratios in (0, 1), [B, G]."""
        noise = torch.randn(self.base.mean.shape, generator=generator).to(self.base.mean)
        return torch.sigmoid(self.base.mean + self.base.stddev * noise)

    def log_prob(self, ratios: Tensor) -> Tensor:
        """Log-density of ratios, [B]."""
        ratios = ratios.clamp(1e-6, 1 - 1e-6)
        # d sigmoid(z) / dz = ratio · (1 − ratio)
        return self.base.log_prob(torch.logit(ratios)) - (ratios * (1 - ratios)).log().sum(-1)

    def entropy(self) -> Tensor:
        """Entropy of z, [B]; that of the ratios has no closed form."""
        return self.base.entropy()


def _head(size: int, hidden: int, out: int, gain: float) -> nn.Sequential:
    layers = nn.Linear(size, hidden), nn.Linear(hidden, out)
    for layer, layer_gain in zip(layers, (math.sqrt(2), gain), strict=True):
        nn.init.orthogonal_(layer.weight, layer_gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])
