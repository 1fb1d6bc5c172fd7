"""The channel groups of known networks, against what their architecture says."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.topology import ChannelGroup, Topology, trace


def groups_of(model: nn.Module, size: int = 32, **options: Any) -> dict[str, ChannelGroup]:
    return {group.name: group for group in trace(model, torch.zeros(1, 3, size, size), **options).groups}


def positions(group: ChannelGroup) -> set[tuple[str, int]]:
    return {(member.parameter, member.dimension) for member in group.members}


def stages(group: ChannelGroup) -> set[str]:
    return {m.parameter.split(".")[0] for m in group.members if m.parameter.startswith("layer")}


def test_resnet56_option_a_couples_its_trunk_across_the_stages() -> None:
    groups = groups_of(resnet_cifar(56, 10))
    trunks = [g for g in groups.values() if any(".conv2." in m.parameter and m.dimension == 0 for m in g.members)]
    assert [(group.width, stages(group)) for group in trunks] == [
        (16, {"layer1", "layer2", "layer3"}),
        (16, {"layer2", "layer3"}),
        (32, {"layer3"}),
    ]
    assert ("conv1.weight", 0) in positions(trunks[0])
    inner = [group for group in groups.values() if group not in trunks]
    assert len(inner) == 27
    assert [group.width for group in inner] == [16] * 9 + [32] * 9 + [64] * 9
    for group in inner:
        block = group.name.rpartition(".")[0]
        assert {m.parameter.rpartition(".")[0] for m in group.members} == {
            f"{block}.conv1",
            f"{block}.bn1",
            f"{block}.conv2",
        }


def test_mobilenet_v2_ties_expansion_to_depth_wise_and_shares_the_residual() -> None:
    settings = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 1]]
    groups = groups_of(torchvision.models.MobileNetV2(inverted_residual_setting=settings))
    inner = groups["features.2.conv.0.0"]
    assert inner.width == 96
    assert positions(inner) >= {
        ("features.2.conv.0.0.weight", 0),
        ("features.2.conv.1.0.weight", 0),
        ("features.2.conv.2.weight", 1),
    }
    residual = groups["features.2.conv.2"]
    assert residual.width == 24
    # Block 3 adds to what block 2 wrote, and block 4 reads the sum.
    assert positions(residual) >= {
        ("features.2.conv.2.weight", 0),
        ("features.3.conv.2.weight", 0),
        ("features.3.conv.0.0.weight", 1),
        ("features.4.conv.0.0.weight", 1),
    }
    assert not any(
        m.parameter.startswith("classifier") and m.dimension == 0 for g in groups.values() for m in g.members
    )


def test_squeeze_and_excitation_follows_what_it_scales() -> None:
    settings, last = torchvision.models.mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small")
    groups = groups_of(torchvision.models.MobileNetV3(settings[:2], last))
    gated = next(g for g in groups.values() if ("features.1.block.1.fc2.weight", 0) in positions(g))
    assert positions(gated) >= {
        ("features.1.block.0.0.weight", 0),
        ("features.1.block.1.fc1.weight", 1),
        ("features.1.block.2.0.weight", 1),
    }
    squeezed = next(g for g in groups.values() if ("features.1.block.1.fc1.weight", 0) in positions(g))
    assert positions(squeezed) == {
        ("features.1.block.1.fc1.weight", 0),
        ("features.1.block.1.fc1.bias", 0),
        ("features.1.block.1.fc2.weight", 1),
    }


def test_densenet_concatenation_keeps_each_layers_channels_apart() -> None:
    model = torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=10)
    groups = groups_of(model)
    stem = groups["features.conv0"]
    first = groups["features.denseblock1.denselayer1.conv2"]
    assert (stem.width, first.width) == (8, 4)
    reads = ("features.denseblock1.denselayer2.conv1.weight", 1)
    assert reads in positions(stem) and reads in positions(first)
    assert not positions(stem) & {("features.denseblock1.denselayer1.conv2.weight", 0)}


def test_flatten_before_a_linear_layer_counts_every_pixel() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.fc = nn.Linear(6 * 49, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.flatten(self.conv(x), 1))

    (group,) = groups_of(Flat(), 7).values()
    assert {(m.parameter, m.dimension): m.count for m in group.members}[("fc.weight", 1)] == 49


def test_vgg_flattens_49_positions_of_each_channel() -> None:
    # One convolution of the real network, so that the test does not pay for its 120 M parameters.
    with torch.device("meta"):
        model = torchvision.models.VGG(nn.Identity(), init_weights=False)
    model.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    model.classifier = nn.Sequential(nn.Linear(4 * 49, 8), nn.ReLU(), nn.Linear(8, 10))
    groups = groups_of(model, 14)
    counts = {(m.parameter, m.dimension): m.count for m in groups["features.0"].members}
    assert counts == {("features.0.weight", 0): 1, ("features.0.bias", 0): 1, ("classifier.0.weight", 1): 49}


def test_grouped_convolutions_keep_the_same_number_in_each_block() -> None:
    model = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, groups=4, width_per_group=8
    )
    topology = trace(model, torch.zeros(1, 3, 32, 32))
    group = next(g for g in topology.groups if ("layer1.0.conv2.weight", 0) in positions(g))
    assert group.width == 8
    assert {m.count for m in group.members if m.parameter == "layer1.0.conv2.weight" and m.dimension == 0} == {4}
    assert {m.count for m in group.members if m.parameter == "layer1.0.conv2.weight" and m.dimension == 1} <= {1}
    slots = topology.slots["layer1.0.conv1.weight", 0].view(4, 8)
    assert (slots == slots[0]).all()
    # The weight's columns are channels of their own in each of its four blocks of rows.
    assert topology.slots["layer1.0.conv2.weight", 1].equal(slots)


class Shared(nn.Module):
    """One convolution at two places, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1, bias=False)
        self.a = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.b = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.b.weight = self.a.weight
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.stem(x)).relu()).mean((2, 3)))


def test_shared_parameters_are_one() -> None:
    model = Shared()
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    (group,) = topology.groups
    assert group.width == 6
    assert not any(member.parameter.startswith("b.") for member in group.members)
    assert int(topology.parameters()) == sum(p.numel() for p in model.parameters())


def test_layer_norm_and_layer_scale_belong_to_the_channels_of_the_trunk() -> None:
    settings = [
        torchvision.models.convnext.CNBlockConfig(8, 16, 1),
        torchvision.models.convnext.CNBlockConfig(16, None, 1),
    ]
    topology = trace(torchvision.models.ConvNeXt(settings, num_classes=10), torch.zeros(1, 3, 32, 32))
    assert {group.name: group.width for group in topology.groups} == {
        "features.0.0": 8,
        "features.1.0.block.3": 32,
        "features.2.1": 16,
        "features.3.0.block.3": 64,
    }
    assert positions(topology.groups[0]) >= {
        ("features.1.0.layer_scale", 0),
        ("features.1.0.block.0.weight", 0),
        ("features.1.0.block.2.weight", 0),
        ("features.2.0.weight", 0),
    }
    assert {reason for reason, _ in topology.locked} == {"network output"}


def test_every_group_has_the_name_of_a_layer() -> None:
    """Even where its weight is computed, or lies at the top of the network."""

    class Computed(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)

    assert list(groups_of(nn.Sequential(Computed(3, 8, 1), nn.ReLU(), Computed(8, 6, 1), nn.Conv2d(6, 2, 1)))) == [
        "0",
        "2",
    ]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.scale = nn.Parameter(torch.rand(6, 1, 1))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv(x) * self.scale).mean((2, 3)))


def test_layer_scale_shrinks_with_its_channels() -> None:
    (group,) = groups_of(Scaled()).values()
    assert ("scale", 0) in positions(group)


@pytest.mark.parametrize(("divisor", "widths"), [(1, [2, 3, 4, 5, 6]), (4, [4, 6]), (8, [6])])
def test_widths_respect_divisor_and_min_keep(divisor: int, widths: list[int]) -> None:
    (group,) = groups_of(Scaled(), divisor=divisor, min_keep=0.3).values()
    assert group.widths() == widths


def test_min_keep_is_not_raised_by_rounding() -> None:
    model = nn.Sequential(nn.Conv2d(3, 100, 1), nn.ReLU(), nn.Conv2d(100, 2, 1))
    (group,) = groups_of(model, min_keep=0.07).values()
    assert group.min_width == 7


def test_slots_number_the_channels_group_by_group() -> None:
    topology: Topology = trace(resnet_cifar(8, 10), torch.zeros(1, 3, 32, 32))
    assert topology.group_of_slot.bincount().tolist() == topology.full_widths().tolist()
    seen = torch.cat([slots.flatten() for slots in topology.slots.values()])
    assert set(seen.tolist()) - {-1} == set(range(len(topology.group_of_slot)))


def test_the_cost_of_the_whole_network_is_a_number() -> None:
    topology = trace(resnet_cifar(8, 10), torch.zeros(1, 3, 32, 32))
    for cost in (topology.macs, topology.parameters):
        assert type(cost()) is int
        assert cost(topology.full_widths()[None]).tolist() == [cost()]
