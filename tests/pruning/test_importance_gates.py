"""Gradients of the gates: of every image alone, against a forward that is masked by hand, and against differences."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import Pruning
from tiny_networks import CASES, images, traced
from torch import Tensor, nn
from torch.nn import functional as F

from gnnrl_lightning.importance.gates import gate_gradients
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.topology import Topology, trace

LABELS = torch.tensor([0, 3, 1])


class DepthWise(nn.Module):
    """A depth-wise convolution, and a linear layer that reads each of its channels sixteen times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.hidden, self.head = nn.Linear(6 * 16, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.depthwise(self.norm(self.stem(x)).relu()))
        return self.head(self.hidden(x.flatten(1)).tanh())


class Sequences(nn.Module):
    """Attention that lays images along the second dimension, and then among the positions of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: resnet_cifar(8, 4),
    "depth-wise": DepthWise,
    "shuffle v1": CASES["shuffle v1"].build,
    "shuffle v2": CASES["shuffle v2"].build,
}


def network(name: str) -> tuple[nn.Module, Topology]:
    torch.manual_seed(0)
    model = Pruning().randomize(NETWORKS[name]())
    return model, trace(model, torch.zeros(1, 3, 8, 8))


def gated_scores(model: nn.Module, topology: Topology, gates: Tensor, x: Tensor) -> Tensor:
    """The network's scores where each layer's input is multiplied by its gates, [N, slots]."""
    model = copy.deepcopy(model).double()
    for path, layer in model.named_modules():
        slots = topology.slots.get((f"{path}.weight", 1), torch.tensor([-1])).flatten()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and (slots >= 0).any():
            each = torch.where(slots >= 0, gates[:, slots], 1.0)  # what a layer reads is what its columns are for

            def gated(_: Any, inputs: Any, each: Tensor = each) -> Tensor:
                return inputs[0] * each.view(*each.shape, *[1] * (inputs[0].dim() - 2))

            layer.register_forward_pre_hook(gated)
    return model(x.double())


def losses(model: nn.Module, topology: Topology, gates: Tensor, x: Tensor) -> Tensor:
    """Cross-entropy of every image, [N]."""
    return F.cross_entropy(gated_scores(model, topology, gates, x), LABELS, reduction="none")


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_those_of_a_forward_that_is_masked_by_hand(name: str) -> None:
    model, topology = network(name)
    x = images(3)
    found = gate_gradients(model, topology, x, LABELS)
    gates = torch.ones_like(found).double().requires_grad_()
    (expected,) = torch.autograd.grad(losses(model, topology, gates, x).sum(), gates)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    step = 1e-5
    for slot in range(0, found.shape[1], 3):
        change = torch.zeros_like(gates).index_fill_(1, torch.tensor([slot]), step)
        with torch.no_grad():
            above, below = (losses(model, topology, gates + sign * change, x) for sign in (1, -1))
        torch.testing.assert_close((above - below) / (2 * step), expected[:, slot], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("build", [*(CASES[name].build for name in ("scaled dot product", "shuffle v2")), Sequences])
def test_no_image_hears_of_the_others(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = Pruning().randomize(build())
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    together = gate_gradients(model, topology, images(3), LABELS)
    for n, (image, label) in enumerate(zip(images(3), LABELS, strict=True)):
        alone = gate_gradients(model, topology, image.unsqueeze(0), label.unsqueeze(0))
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-4, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_nothing_of_the_model_changes() -> None:
    model, topology = traced("shuffle v2")
    model = copy.deepcopy(model)
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():  # as where an importance is asked
        found = gate_gradients(model, topology, images(3), LABELS)
    assert not found.requires_grad and found.abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


class Made(nn.Module):
    """A forward that has a tensor of its own, and makes another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8], device=x.device)
        return self.head((self.stem(x).relu() * ramp + torch.ones(8, device=x.device)).mean((2, 3)))


@pytest.mark.parametrize("build", [*(CASES[name].build for name in ("shuffle v1", "slice", "standardised")), Made])
def test_all_is_computed_where_the_images_are(build: Callable[[], nn.Module]) -> None:
    """On a device without values: whatever stayed behind on another would not combine with what is there."""
    model = build().eval()
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    found = gate_gradients(model.to("meta"), topology, images(3).to("meta"), LABELS.to("meta"))
    assert found.device.type == "meta" and found.shape == (3, len(topology.group_of_slot))
