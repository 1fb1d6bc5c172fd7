import pytest
import torch
from torch import Tensor, nn

from gnnrl_lightning.data import HeldImages, Preprocessing
from gnnrl_lightning.importance.hrank import HighRank
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.topology import trace

PLAIN = Preprocessing(mean=(0, 0, 0), std=(1 / 255,) * 3, crop=4, resize=4, interpolation="bilinear")


class Net(nn.Module):
    """Copies of the image's channels; behind them something, and a second layer that reads them."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.copy = nn.Conv2d(3, 3, 1, bias=False)
        self.copy.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.copy(x).relu())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) + self.b(x) + self.c(x - x.mean((2, 3), keepdim=True))).mean((2, 3))


def images() -> HeldImages:
    """Channels whose rank is known: one brightness, as many as there are rows, black; a lone pixel in one image."""
    pixels = torch.zeros(4, 3, 4, 4).byte()
    pixels[:, 0] = 9
    pixels[:, 1] = torch.diag(torch.tensor([1, 2, 3, 4])).byte()
    pixels[0, 2, 1, 2] = 7
    return HeldImages(pixels, PLAIN)


@pytest.mark.parametrize(
    ("behind", "ranks"),
    [
        (nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), [(1, 4, 0.25)]),
        # What two layers read is one map. A third reads another, without its mean: a lone pixel then has rank 2.
        (Twice(), [(1, 4, 0.25), (0, 4, 0.5)]),
        # A number that a linear layer reads is a map of one pixel.
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), [(1, 1 / 4, 1 / 64)]),
    ],
)
@pytest.mark.parametrize("batch_size", [3, 4])
def test_ranks_are_those_of_the_maps_that_are_read(
    behind: nn.Module, ranks: list[tuple[float, float, float]], batch_size: int
) -> None:
    model = Net(behind).eval()
    topology = trace(model, torch.zeros(1, 3, 4, 4))
    task = Task(topology, topology.macs, topology.macs(), topology.full_widths(), lambda: [])
    (scores,) = HighRank(4, batch_size)(model, task, images(), torch.zeros(4).long()).scores
    layers = torch.tensor(ranks)
    torch.testing.assert_close(scores, (layers / layers.mean(1, keepdim=True)).mean(0))
