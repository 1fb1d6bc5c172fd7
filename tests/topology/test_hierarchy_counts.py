"""Sizes of the hierarchical graph: Table 3 of GNN-RL and the same formulas for the other CIFAR ResNets."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.topology import Topology, trace
from gnnrl_lightning.topology.hierarchy import hierarchical_graph

TABLE_3 = {
    20: ((2_020, 3_286), (61_592, 90_637)),
    32: ((3_412, 5_544), (105_968, 156_063)),
    44: ((4_804, 7_802), (150_344, 221_489)),
    56: ((6_196, 10_060), (194_720, 286_915)),
    110: ((12_460, 20_221), (394_412, 581_332)),
}


@pytest.mark.parametrize("depth", TABLE_3)
def test_counts_equal_the_papers(depth: int) -> None:
    graph = hierarchical_graph(trace(resnet_cifar(depth, 10), torch.zeros(1, 3, 32, 32)))
    counts = graph.counts()
    assert (counts["hierarchical"], counts["plain"]) == TABLE_3[depth]
    assert counts["quotient"][0] < counts["hierarchical"][0] / 10
    assert counts["quotient"][1] < counts["hierarchical"][1] / 10
    assert sorted(motif.channels for motif in graph.motifs) == [3, 16, 16, 32, 32, 64]


def test_pruning_shrinks_the_counts_and_not_the_quotient(resnet20_topology: Topology) -> None:
    topology = resnet20_topology
    graph = hierarchical_graph(topology)
    full, pruned = graph.counts(), graph.counts(graph.full_widths // 2)
    smaller = hierarchical_graph(topology, topology.full_widths() // 2)
    assert smaller.counts() == pruned and smaller.counts(topology.full_widths()) == full
    assert smaller.full_widths.equal(graph.full_widths) and smaller.multiplicities().equal(graph.multiplicities())
    assert pruned["quotient"] == full["quotient"]
    assert pruned["hierarchical"] < full["hierarchical"]
    assert pruned["plain"][0] < 0.3 * full["plain"][0]
    # Half of every group leaves half of every layer but the network's own three input channels.
    assert graph.conv_channels(graph.full_widths // 2).tolist() == [
        c if c == 3 else c // 2 for c in graph.conv_channels().tolist()
    ]


@pytest.mark.parametrize("change", [lambda w: w[1:], lambda w: w + 1, lambda w: w * 0])
def test_widths_of_another_network_are_refused(change: Callable[[Tensor], Tensor], resnet20_topology: Topology) -> None:
    with pytest.raises(ValueError, match=r"widths=\[.*must be one number a group"):
        hierarchical_graph(resnet20_topology, change(resnet20_topology.full_widths()))
