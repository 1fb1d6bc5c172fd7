"""The layers of known networks, their joins, what each reads, and how many channels each keeps."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning.apply import apply_plan, uniform_plan
from gnnrl_lightning.topology import Topology, trace
from gnnrl_lightning.topology.outline import JOINS, Layer, outline, read_layers, write_layers


def layers_of(model: nn.Module, size: int = 32) -> list[Layer]:
    topology = trace(model, torch.zeros(1, 3, size, size))
    return outline(topology, topology.full_widths())


def read_by(layers: list[Layer], name: str, kind: str) -> set[tuple[str, str]]:
    (layer,) = (layer for layer in layers if (layer.name, layer.kind) == (name, kind))
    return {(layers[index].name, layers[index].kind) for index in layer.reads}


def test_resnet20_is_a_chain_with_one_sum_a_block(resnet20_topology: Topology) -> None:
    layers = outline(resnet20_topology, resnet20_topology.full_widths())
    assert Counter(layer.kind for layer in layers) == {"convolution": 19, "add": 9, "linear": 1}
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    expected = [("conv1", "convolution", set())]
    for before, block in zip(["conv1", *blocks], blocks, strict=False):
        source = (before, "add" if before != "conv1" else "convolution")
        expected += [
            (f"{block}.conv1", "convolution", {source}),
            (f"{block}.conv2", "convolution", {(f"{block}.conv1", "convolution")}),
            (block, "add", {(f"{block}.conv2", "convolution"), source}),
        ]
    expected.append(("linear", "linear", {(blocks[-1], "add")}))
    assert [(layer.name, layer.kind, read_by(layers, layer.name, layer.kind)) for layer in layers] == expected
    assert [layer.width for layer in layers] == [16] * 10 + [32] * 9 + [64] * 9 + [10]


def test_widths_are_those_that_the_topology_counts(resnet20_topology: Topology) -> None:
    widths = torch.tensor([1 + index % group.width for index, group in enumerate(resnet20_topology.groups)])
    convolutions = [layer for layer in outline(resnet20_topology, widths) if layer.kind == "convolution"]
    nodes = [node for node in resnet20_topology.operations if node.startswith("conv")]
    for layer, node in zip(convolutions, nodes, strict=True):
        fixed, counts = resnet20_topology.channels(node)
        assert layer.kept == fixed + int(counts @ widths)
    assert any(layer.kept < layer.width for layer in convolutions)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "resnet18"])
def test_what_is_kept_is_what_the_pruned_network_has(name: str) -> None:
    torch.manual_seed(0)
    short = {"inverted_residual_setting": [[1, 16, 1, 1], [6, 24, 2, 2]]} if name == "mobilenet_v2" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **short)
    topology = trace(model, torch.zeros(1, 3, 32, 32))
    plan = uniform_plan(topology, model, keep=0.6)
    layers = outline(topology, torch.tensor([len(group.kept) for group in plan.groups]))
    pruned = apply_plan(model, plan)
    for module, which in ((model, "width"), (pruned, "kept")):
        found = {
            path: layer.weight.shape[0]
            for path, layer in module.named_modules()
            if isinstance(layer, (nn.Conv2d, nn.Linear))
        }
        assert {layer.name: getattr(layer, which) for layer in layers if layer.kind not in JOINS} == found
    depth_wise = {path for path, layer in model.named_modules() if getattr(layer, "groups", 1) > 1}
    assert {layer.name for layer in layers if layer.kind == "depth-wise"} == depth_wise


def test_branches_meet_in_joins_and_written_out_activations_do_not() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.squeeze = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.a, self.b, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x * torch.sigmoid(x) + 1
            x = x * self.squeeze(x.mean((2, 3), keepdim=True))
            return self.head(torch.cat([self.a(x), self.b(x)], 1).relu().mean((2, 3)))

    layers = layers_of(Gated())
    assert [(layer.name, layer.kind, layer.width, layer.reads) for layer in layers] == [
        ("stem", "convolution", 8, ()),
        ("squeeze", "convolution", 8, (0,)),
        ("mul", "mul", 8, (0, 1)),
        ("a", "convolution", 4, (2,)),
        ("b", "convolution", 6, (2,)),
        ("cat", "cat", 10, (3, 4)),
        ("head", "linear", 2, (5,)),
    ]


def test_a_shuffled_unit_joins_what_it_passed_by() -> None:
    layers = layers_of(torchvision.models.shufflenet_v2_x0_5(weights=None), 64)
    assert Counter(layer.kind for layer in layers) == {"convolution": 37, "depth-wise": 19, "cat": 16, "linear": 1}
    joined = read_by(layers, "stage2.1", "cat")
    assert joined == {("stage2.0", "cat"), ("stage2.1.branch2.5", "convolution")}


def test_products_of_activations_are_layers_and_masks_are_not() -> None:
    swin = torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [1, 2], [7, 7], num_classes=10)
    layers = layers_of(swin, 64)
    kinds = Counter(layer.kind for layer in layers)
    assert (kinds["product"], kinds["add"], kinds["cat"]) == (8, 8, 1)
    assert all(len(layer.reads) == 2 for layer in layers if layer.kind == "add")


def test_layers_are_read_as_they_were_written(tmp_path: Path, resnet20_topology: Topology) -> None:
    widths = resnet20_topology.min_widths()
    write_layers(tmp_path / "layers.json", resnet20_topology, widths)
    assert read_layers(tmp_path / "layers.json") == outline(resnet20_topology, widths)


def test_kept_channels_of_the_trunk_are_those_of_its_groups() -> None:
    topology = trace(resnet_cifar(20, 10), torch.zeros(1, 3, 32, 32))
    widths = topology.full_widths()
    index = next(i for i, group in enumerate(topology.groups) if group.name == "layer3.1.conv1")
    widths[index] = 5
    changed = {layer.name: layer.kept for layer in outline(topology, widths) if layer.kept != layer.width}
    assert changed == {"layer3.1.conv1": 5}
