import torch
import torchvision
from torch import nn

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.topology import trace
from gnnrl_lightning.topology.layer_features import layer_features


def test_the_layer_that_makes_the_channels() -> None:
    """n, c, h, w, stride, k and MACs of the first layer of each group, counted by hand."""
    topology = trace(resnet_cifar(20, 10), torch.zeros(1, 3, 32, 32))
    rows = dict(zip((group.name for group in topology.groups), layer_features(topology).tolist(), strict=True))
    assert rows["conv1"] == [16, 3, 32, 32, 1, 3, 16 * 3 * 9 * 1024]
    assert rows["layer2.0.conv1"] == [32, 16, 16, 16, 2, 3, 32 * 16 * 9 * 256]
    assert rows["layer3.2.conv1"] == [64, 64, 8, 8, 1, 3, 64 * 64 * 9 * 64]


def test_expansion_and_classifier() -> None:
    topology = trace(torchvision.models.mobilenet_v2(weights=None), torch.zeros(1, 3, 224, 224))
    rows = dict(zip((group.name for group in topology.groups), layer_features(topology).tolist(), strict=True))
    assert rows["features.2.conv.0.0"] == [96, 16, 112, 112, 1, 1, 96 * 16 * 112**2]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 2))
    features = layer_features(trace(model, torch.zeros(1, 3, 4, 4)))
    assert features.tolist() == [[4, 3, 2, 2, 1, 3, 4 * 3 * 9 * 4], [6, 16, 1, 1, 1, 1, 96]]


def test_channels_that_nothing_writes_have_the_layer_that_reads_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ConstantPad3d((0, 0, 0, 0, 2, 2), 0.0), nn.Conv2d(7, 2, 3, stride=2))
    topology = trace(model, torch.zeros(1, 3, 9, 9))
    padded = next(i for i, group in enumerate(topology.groups) if group.width == 4)
    assert layer_features(topology)[padded].tolist() == [2, 7, 4, 4, 2, 3, 2 * 7 * 9 * 16]
