import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gnnrl_lightning.core.layout import to_fastest_layout
from gnnrl_lightning.models.resnet_cifar import resnet_cifar

IMAGES = torch.randn(2, 3, 16, 16)


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(x.size(0), -1))


class Scaled(nn.Module):
    """Has a weight of five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 8, 3), nn.Parameter(torch.ones(1, 1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * self.scale[0]).mean((2, 3))


def test_a_network_of_convolutions_becomes_channels_last() -> None:
    model = resnet_cifar(8, 4).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert to_fastest_layout(model, IMAGES) == torch.channels_last
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last) and model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [Viewed, Scaled])
def test_one_that_cannot_stays_as_it_is(kind: type[nn.Module]) -> None:
    model = kind()
    assert to_fastest_layout(model, IMAGES) == torch.contiguous_format
    assert all(p.is_contiguous() for p in model.parameters())
    assert model(IMAGES).isfinite().all()


class Strided(nn.Module):
    """Halves the map pixel by pixel, as the shortcuts of ResNets do."""

    def __init__(self, channels: int, kernel: int = 1, stride: int = 2) -> None:
        super().__init__()
        self.stem, self.short = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 20, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.short(self.stem(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "layout"),
    [
        (Strided(14), torch.contiguous_format),
        (Strided(16), torch.channels_last),
        (Strided(14, kernel=2), torch.channels_last),
        (Strided(14, stride=1), torch.channels_last),
    ],
)
def test_no_layout_in_which_learning_crashes_is_chosen(network: Strided, layout: torch.memory_format) -> None:
    network.to(memory_format=torch.channels_last)
    assert to_fastest_layout(network, IMAGES) == layout
    assert network.stem.weight.is_contiguous(memory_format=layout)


def test_a_network_that_would_crash_learns_contiguous() -> None:
    script = """
import torch, gnnrl_lightning as gl
from test_layout import Strided
from gnnrl_lightning.core.samples import HeldInputs
from gnnrl_lightning.core.sgd import sgd_steps
from gnnrl_lightning.core.inputs import laid_out
torch.set_num_threads(1)
network = Strided(28).eval()
topology = gl.trace(network, torch.zeros(1, 3, 32, 32))
small = gl.apply_plan(network, gl.plan(topology, [14])).to(memory_format=torch.channels_last)
images = torch.randn(2, 3, 226, 226).to(memory_format=torch.channels_last)
for _ in sgd_steps(small, HeldInputs(images), torch.tensor([0, 1]), 2, 0.1, 2, seed=0):
    print("a step")
"""
    here = Path(__file__).parent
    ended = subprocess.run([sys.executable, "-c", script], cwd=here, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stdout.count("a step") == 2, ended.stderr
