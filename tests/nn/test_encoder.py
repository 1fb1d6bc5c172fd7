"""The m-GNN on quotient graphs equals the same network on the expanded graphs, node by node."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.nn.encoder import GraphEncoder
from gnnrl_lightning.nn.message_passing import EdgeGCNConv
from gnnrl_lightning.topology import trace
from gnnrl_lightning.topology.hierarchy import EDGE_KINDS, MOTIF_KINDS, HierarchicalGraph, hierarchical_graph


def graph_of(model: nn.Module, size: int = 16) -> HierarchicalGraph:
    return hierarchical_graph(trace(model, torch.zeros(1, 3, size, size)))


def encoder_of(graph: HierarchicalGraph, **options: object) -> GraphEncoder:
    """An encoder with random pooling weights: at first those of a class are equal and would hide their order."""
    torch.manual_seed(0)
    encoder = GraphEncoder(graph, feature_size=6, hidden_size=8, embedding_size=7, **options)  # type: ignore[arg-type]
    for pool in (encoder.pool, encoder.motif.pool):
        nn.init.normal_(pool.weight, std=0.05)
    return encoder


def convolve(conv: EdgeGCNConv, x: Tensor, edges: list[tuple[int, int, Tensor]]) -> Tensor:
    """Equation 4 with PyG's `gcn_norm` written out: self-loops, degrees over incoming edges."""
    source, target = torch.tensor([edge[:2] for edge in edges]).T
    features = torch.stack([edge[2] for edge in edges])
    adjacency = torch.zeros(len(x), len(x)).index_put((target, source), torch.ones(len(edges)), accumulate=True)
    degree = adjacency.sum(1) + 1
    norm = (degree[source] * degree[target]) ** -0.5
    summed = torch.zeros_like(x).index_add(0, target, norm.unsqueeze(1) * x[source] * features)
    return conv.linear(summed + x / degree.unsqueeze(1))


def expanded_motif(encoder: GraphEncoder, motif: int, channels: int) -> Tensor:
    """Level 1, every channel a node: split, channels, filtered channels, merge."""
    level, info = encoder.motif, encoder.graph.motifs[motif]
    kind = MOTIF_KINDS.index(info.kind)
    spread, mix, merge = (level.edge.weight[3 * kind + i] for i in range(3))
    numbers = torch.tensor([info.kernel / 9, info.stride / 2, torch.tensor(float(channels)).log2() / 16])
    split, channel, filtered, merged = level.node.weight + level.numbers(numbers)
    x = torch.stack([split, *[channel] * channels, *[filtered] * channels, merged])
    edges = []
    for i in range(channels):
        edges += [(0, 1 + i, spread), (1 + i, 1 + channels + i, mix), (1 + channels + i, 1 + 2 * channels, merge)]
    h = torch.relu(convolve(level.conv, x, edges))
    start = sum(2 * m.channels + 2 for m in encoder.graph.motifs[:motif])
    full = info.channels
    # Pruned nodes have a weight too, which meets a zero vector.
    alive = [0, *range(1, 1 + channels), *range(1 + full, 1 + full + channels), 1 + 2 * full]
    alpha = level.pool.weight[start : start + 2 * full + 2][alive]
    return torch.tanh(level.linear(alpha @ h))


def expanded_network(encoder: GraphEncoder, widths: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Level 2, every channel a node.

    Returns:
        The embedding, that of each node class's first node, and that of each convolution's motif.
    """
    graph = encoder.graph
    full, present = graph.multiplicities().tolist(), graph.multiplicities(widths).tolist()
    motifs = [
        expanded_motif(encoder, int(motif), int(channels))
        for motif, channels in zip(graph.conv_motif, graph.conv_channels(widths), strict=True)
    ]
    first: list[int] = []
    features: list[Tensor] = []
    alpha: list[Tensor] = []
    offset = 0
    for v, (size, left) in enumerate(zip(full, present, strict=True)):
        numbers = torch.cat([graph.node_features[v], torch.tensor([left / size])])
        first.append(len(features))
        features += [encoder.node.weight[graph.node_kind[v]] + encoder.numbers(numbers)] * left
        alpha += list(encoder.pool.weight[offset : offset + left])
        offset += size
    x = torch.stack(features)
    edges = []
    for (s, t), kind, motif in zip(graph.edges.T.tolist(), graph.edge_kind, graph.edge_motif.tolist(), strict=True):
        feature = motifs[motif] if motif >= 0 else encoder.edge.weight[kind]
        assert 1 in (full[s], full[t]), "a class meets single nodes only"
        edges += [(first[s] + i, first[t] + j, feature) for i in range(present[s]) for j in range(present[t])]
    for layer, conv in enumerate(encoder.convs):
        resize = encoder.edge_sizes[layer - 1] if layer else nn.Identity()
        assert isinstance(conv, EdgeGCNConv)
        x = torch.relu(convolve(conv, x, [(s, t, resize(feature)) for s, t, feature in edges]))
    return (
        torch.tanh(encoder.linear(torch.stack(alpha) @ x)),
        [torch.tanh(encoder.linear(x[i])) for i in first],
        motifs,
    )


class Small(nn.Module):
    """Every kind of node and edge in a few channels: residual, depth-wise, point-wise, concat, gate, pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.same = nn.Conv2d(5, 5, 3, padding=1)
        self.depth, self.point = nn.Conv2d(5, 5, 3, stride=2, padding=1, groups=5), nn.Conv2d(5, 4, 1)
        self.left, self.right = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 2, 3, padding=1)
        self.gate, self.head = nn.Conv2d(5, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.point(self.depth(x + self.same(x))).relu()
        x = nn.functional.max_pool2d(torch.cat([self.left(x), self.right(x)], 1), 2)
        return self.head((x * self.gate(x).sigmoid()).mean((2, 3)))


@pytest.mark.parametrize("build", [Small, lambda: resnet_cifar(8, 10)])
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_the_quotient_equals_the_expanded_graph(build: Callable[[], nn.Module], layers: int) -> None:
    graph = graph_of(build())
    encoder = encoder_of(graph, num_layers=layers)
    generator = torch.Generator().manual_seed(0)
    some = [1 + (torch.rand(len(graph.full_widths), generator=generator) * graph.full_widths).long() for _ in range(3)]
    widths = torch.stack([graph.full_widths, torch.ones_like(graph.full_widths), *(w.clamp(max=64) for w in some)])
    widths = torch.minimum(widths, graph.full_widths)
    networks, states = encoder(widths)
    motifs = encoder._motifs(widths)
    for row, network, state, motif in zip(widths, networks, states, motifs, strict=True):
        expected, expected_states, expected_motifs = expanded_network(encoder, row)
        torch.testing.assert_close(network, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(state, torch.stack(expected_states), atol=1e-5, rtol=0)
        torch.testing.assert_close(motif, torch.stack(expected_motifs), atol=1e-5, rtol=0)
    assert (networks[0] - networks[1]).abs().max() > 1e-3


def test_the_small_network_has_every_kind_of_edge() -> None:
    graph = graph_of(Small())
    kinds = {EDGE_KINDS[kind] for kind in graph.edge_kind.tolist()}
    assert kinds == set(EDGE_KINDS)
    assert {motif.kind for motif in graph.motifs} == set(MOTIF_KINDS)


def test_a_batch_is_its_widths_one_by_one() -> None:
    graph = graph_of(resnet_cifar(8, 10))
    encoder = encoder_of(graph)
    widths = torch.stack([graph.full_widths, graph.full_widths // 2, graph.full_widths // 4])
    networks, states = encoder(widths)
    for i in range(3):
        network, state = encoder(widths[i : i + 1])
        torch.testing.assert_close(networks[i : i + 1], network)
        torch.testing.assert_close(states[i : i + 1], state)


def test_only_the_pooling_weights_belong_to_one_network() -> None:
    small, large = (GraphEncoder(graph_of(resnet_cifar(depth, 10))) for depth in (20, 56))
    shapes = [{n: p.shape for n, p in e.named_parameters() if "pool" not in n} for e in (small, large)]
    assert shapes[0] == shapes[1]
    assert small.pool.weight.shape != large.pool.weight.shape
    other = GraphEncoder(graph_of(torchvision.models.mobilenet_v2(weights=None), 32))
    assert shapes[0] == {n: p.shape for n, p in other.named_parameters() if "pool" not in n}
    carried = {n: p for n, p in small.state_dict().items() if "pool" not in n}
    assert not large.load_state_dict(carried, strict=False).unexpected_keys


@pytest.mark.parametrize("build", [Small, lambda: resnet_cifar(20, 10)])
def test_gradients_reach_every_parameter(build: Callable[[], nn.Module]) -> None:
    graph = graph_of(build())
    encoder = encoder_of(graph)
    networks, states = encoder(torch.stack([graph.full_widths, graph.full_widths // 2]))
    (networks.sum() + states.square().sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    # Every node, not only one of each class.
    assert (encoder.pool.weight.grad != 0).all()  # type: ignore[union-attr]


def test_random_features_are_drawn_once_and_alike() -> None:
    graph = graph_of(resnet_cifar(8, 10))
    a, b = encoder_of(graph, features="random"), encoder_of(graph, features="random")
    assert torch.equal(a._random, b._random) and a._random.std() > 0.8
    assert "_random" in a.state_dict()
    assert not torch.equal(a(graph.full_widths[None])[0], encoder_of(graph)(graph.full_widths[None])[0])
    with pytest.raises(ValueError, match=r"agent\.encoder\.features=noise must be learned or random"):
        encoder_of(graph, features="noise")


def test_the_graph_moves_with_the_encoder() -> None:
    graph = graph_of(resnet_cifar(8, 10))
    encoder = encoder_of(graph).to("meta")
    tensors = [value for value in vars(encoder.graph).values() if isinstance(value, Tensor)]
    assert {value.device.type for value in tensors} == {"meta"} and len(tensors) > 8
    assert {b.device.type for b in encoder.buffers()} == {"meta"}
    assert graph.edges.device.type == "cpu"  # the caller's graph is not touched


def test_a_network_without_convolutions_has_a_graph() -> None:
    graph = graph_of(nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 2)), 4)
    network, states = encoder_of(graph)(graph.full_widths[None])
    assert network.isfinite().all() and states.isfinite().all()
