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
