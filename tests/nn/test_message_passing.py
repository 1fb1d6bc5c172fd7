"""Equation 4 by hand, on plain and on quotient graphs; equation 5 with weights by rank."""

import torch
from torch import Tensor

from gnnrl_lightning.nn.message_passing import EdgeGCNConv, LearnedPooling


def equation_4(conv: EdgeGCNConv, x: Tensor, edges: list[tuple[int, int]], features: Tensor) -> Tensor:
    """h_i' = Σ_j W (h_j ⊙ e_ij) / √(d_i d_j) + b, one edge at a time."""
    weight, bias = conv.linear.weight, conv.linear.bias
    degree = [1 + sum(target == i for _, target in edges) for i in range(len(x))]
    rows = []
    for i in range(len(x)):
        total = weight @ x[i] / degree[i]
        for (source, target), feature in zip(edges, features, strict=True):
            if target == i:
                total = total + weight @ (x[source] * feature) / (degree[i] * degree[source]) ** 0.5
        rows.append(total + bias)
    return torch.stack(rows)


def test_convolution_is_equation_4() -> None:
    torch.manual_seed(0)
    edges = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (0, 4), (4, 2)]
    conv, x, features = EdgeGCNConv(3, 5), torch.randn(5, 3), torch.randn(len(edges), 3)
    result = conv(x, torch.tensor(edges).T, features, torch.ones(len(edges)))
    torch.testing.assert_close(result, equation_4(conv, x, edges, features))


def test_a_class_of_nodes_stands_for_all_of_them() -> None:
    torch.manual_seed(0)
    conv, x, features = EdgeGCNConv(3, 5), torch.randn(3, 3), torch.randn(2, 3)
    # 0 → four alike → 1, as a quotient 0 → 1 → 2.
    quotient = conv(x, torch.tensor([[0, 1], [1, 2]]), features, torch.tensor([1.0, 4.0]))
    edges = [(0, i) for i in range(1, 5)] + [(i, 5) for i in range(1, 5)]
    expanded = equation_4(conv, x[[0, 1, 1, 1, 1, 2]], edges, features[[0] * 4 + [1] * 4])
    torch.testing.assert_close(quotient, expanded[[0, 1, 5]])


def test_a_batch_is_its_graphs_one_by_one() -> None:
    torch.manual_seed(0)
    conv, x, features = EdgeGCNConv(3, 5), torch.randn(4, 3, 3), torch.randn(4, 2, 3)
    edges, copies = torch.tensor([[0, 1], [1, 2]]), torch.randint(1, 9, (4, 2))
    batch = conv(x, edges, features, copies)
    for i in range(4):
        torch.testing.assert_close(batch[i], conv(x[i], edges, features[i], copies[i]))


def test_pooling_weighs_every_node_that_is_left() -> None:
    torch.manual_seed(0)
    pool, x = LearnedPooling(torch.tensor([1, 4, 2])), torch.randn(3, 5)
    torch.testing.assert_close(pool(x, torch.tensor([1, 4, 2])), x.mean(0))  # classes count alike at first
    pool.weight.data = torch.randn(7)
    w = pool.weight
    expected = w[0] * x[0] + (w[1] + w[2] + w[3]) * x[1] + w[5] * x[2]
    torch.testing.assert_close(pool(x, torch.tensor([1, 3, 1])), expected)
