"""The closed-form cost equals what torch counts on the network that is really pruned."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_lightning.cost.flops import Flops
from gnnrl_lightning.cost.params import Params
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.pruning.verify import verified
from gnnrl_lightning.topology import Topology, trace


def random_widths(topology: Topology, count: int) -> Tensor:
    """Any allowed number of channels for each group, [count, G]."""
    generator = torch.Generator().manual_seed(0)
    allowed = [torch.tensor(group.widths()) for group in topology.groups]
    return torch.stack([w[torch.randint(len(w), (count,), generator=generator)] for w in allowed], 1)


def first(widths: Tensor) -> list[range]:
    return [range(width) for width in widths.tolist()]


def counted(model: nn.Module, size: int) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("build", "plans"),
    [
        (lambda: resnet_cifar(56, 10), 200),
        (lambda: torchvision.models.mobilenet_v2(weights=None, num_classes=10), 20),
        (lambda: torchvision.models.resnet50(weights=None, num_classes=10), 20),
        (lambda: torchvision.models.efficientnet_b0(weights=None, num_classes=10), 3),
        (lambda: torchvision.models.resnext50_32x4d(weights=None, num_classes=10), 3),
        (lambda: torchvision.models.densenet121(weights=None, num_classes=10), 2),
    ],
)
def test_cost_of_any_plan_is_that_of_the_pruned_network(build: Callable[[], nn.Module], plans: int) -> None:
    with torch.device("meta"):
        model = build().eval()
    topology = trace(model, torch.zeros(1, 3, 32, 32, device="meta"))
    widths = torch.cat([topology.full_widths()[None], random_widths(topology, plans)])
    # All at once, as the environment asks.
    macs, parameters = Flops(topology)(widths), Params(topology)(widths)
    assert macs.shape == parameters.shape == (plans + 1,)
    for row, expected in zip(widths, zip(macs.tolist(), parameters.tolist(), strict=True), strict=True):
        assert counted(prune(model, topology, first(row)), 32) == expected
        assert (int(topology.macs(row)), int(topology.parameters(row))) == expected
    assert len(set(macs.tolist())) > plans / 2


def test_the_papers_numbers() -> None:
    resnet56 = trace(resnet_cifar(56, 10), torch.zeros(1, 3, 32, 32))
    assert round(int(resnet56.macs()) / 1e6, 1) == 125.5
    with torch.device("meta"):
        mobilenet = torchvision.models.mobilenet_v2(weights=None)
    topology = trace(mobilenet, torch.zeros(2, 3, 224, 224, device="meta"))
    assert round(int(topology.macs()) / 1e6, 1) == 300.8  # for one image, whatever the batch
    assert int(topology.parameters()) == 3_504_872


class Standardized(nn.Conv2d):
    """A convolution whose weight is computed."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


@pytest.mark.parametrize(
    "between",
    [
        Standardized(8, 8, 3, padding=1),
        nn.ConvTranspose2d(8, 8, 2, stride=2),
        nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(8, 16, 3, groups=2),
    ],
)
def test_every_kind_of_convolution_is_counted(between: nn.Conv2d) -> None:
    last = nn.Conv2d(between.out_channels, 5, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), between, last, nn.ReLU(), nn.Conv2d(5, 2, 1))
    topology = trace(model, torch.zeros(1, 3, 12, 12))
    for widths in random_widths(topology, 5):
        small = verified(model, topology, first(widths))
        assert counted(small, 12) == (int(topology.macs(widths)), int(topology.parameters(widths)))
