"""A rewritten network takes images of any size that the original takes, or says why it does not."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gnnrl_lightning as gl

Tail = Callable[["Net", Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Its two halves by a split, as C2f has them: only a rewritten graph has other halves. The tail varies."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tail = tail
        self.a = nn.Conv2d(3, 16, 3, 2, 1)
        self.b, self.c = nn.Conv2d(8, 16, 3, 1, 1), nn.Conv2d(8, 16, 3, 1, 1)
        self.o = nn.Conv2d(32, 4, 1)
        self.table = nn.Parameter(torch.randn(1, 4, 5, 5))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.a(x).relu().split([8, 8], 1)
        return self.tail(self, x, self.o(torch.cat((self.b(u), self.c(v)), 1)))


def windows(y: Tensor, side: int) -> Tensor:
    """Attention-like windows and back, as Swin has them where nothing is padded."""
    n, c, h, w = y.shape
    parts = y.view(n, c, h // side, side, w // side, side).permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, c)
    parts = parts.softmax(1)
    parts = parts.view(n, h // side, w // side, side, side, c).permute(0, 5, 1, 3, 2, 4)
    return parts.reshape(n, c, h, w)


def coordinates(y: Tensor) -> Tensor:
    rows = torch.arange(y.shape[2], device=y.device).float() / y.shape[2]
    columns = torch.linspace(0, 1, y.shape[3], device=y.device)
    return y + rows[:, None] * columns


FOLLOW: dict[str, Tail] = {
    "interpolate": lambda net, x, y: F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False),
    "avg_pool2d": lambda net, x, y: F.avg_pool2d(y, y.shape[2:]).flatten(1),
    "sum over size": lambda net, x, y: y.sum((2, 3)) / (y.shape[2] * y.shape[3]),
    "times one over size": lambda net, x, y: y.sum((2, 3)) * (1 / (y.shape[2] * y.shape[3])),
    "view": lambda net, x, y: y.view(y.shape[0], 4, y.shape[2] * y.shape[3]).softmax(2),
    "flat": lambda net, x, y: y.reshape(y.shape[0], 4 * y.shape[2] * y.shape[3]).cumsum(1),
    "slice": lambda net, x, y: y[:, :, 1 : y.shape[2] - 1, : y.shape[3] // 2],
    "twice": lambda net, x, y: F.interpolate(y, size=(2 * y.shape[2], 3 * y.shape[3])),
    "coordinates": lambda net, x, y: coordinates(y),
    "zeros": lambda net, x, y: torch.cat([y, torch.zeros(y.shape[0], 1, *y.shape[2:], device=y.device)], 1),
}
REFUSE: dict[str, tuple[Tail, str]] = {
    "a table of the traced size": (lambda net, x, y: y[:, :, :5, :5] * net.table, ""),
    "other operations": (
        lambda net, x, y: y.relu() if y.shape[2] == 16 else y.sigmoid(),
        "takes no other size, or runs other operations there",
    ),
    "a crop that even sizes do not need": (
        lambda net, x, y: F.interpolate(y, scale_factor=2.0)[:, :, : x.shape[2], : x.shape[3]],
        "at other sizes it would compute something else",
    ),
    "a made-up number": (
        lambda net, x, y: y * (y.shape[2] ** 1.5),
        "mul has a number that follows none",
    ),
}


def halved(net: Net, side: int = 32) -> tuple[nn.Module, nn.Module]:
    """The pruned network, and the original that gives zeros for what was removed."""
    topology = gl.trace(net, torch.zeros(1, 3, side, side))
    plan = gl.uniform_plan(topology, net, keep=0.5)
    small, masked = gl.apply_plan(net, plan), copy.deepcopy(net)
    assert gl.is_rewritten(small)
    for group in plan.groups:
        gone = [channel for channel in range(group.width) if channel not in group.kept]
        if group.name in ("a", "a#8"):
            first = 8 * group.name.endswith("#8")
            for value in (masked.a.weight, masked.a.bias):
                assert value is not None
                value.data[[first + channel for channel in gone]] = 0
        elif group.name in ("b", "c"):
            layer = masked.get_submodule(group.name)
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            layer.weight.data[gone] = 0
            layer.bias.data[gone] = 0
        else:
            raise AssertionError(group.name)
    return small, masked


@pytest.mark.parametrize("tail", FOLLOW)
def test_other_sizes_are_right(tail: str) -> None:
    small, masked = halved(Net(FOLLOW[tail]))
    for height, width in ((32, 32), (64, 64), (33, 47), (20, 90)):
        x = torch.randn(3, 3, height, width)
        torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tail", REFUSE)
def test_what_cannot_follow_is_one_sentence(tail: str) -> None:
    way, said = REFUSE[tail]
    small, masked = halved(Net(way))
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)
    if not said:  # it needs no number of the size
        return
    with pytest.raises(AssertionError, match=f"this network takes 32×32 alone.*{said}"):
        small(torch.randn(3, 3, 64, 64))


def test_windows_follow_where_they_fit() -> None:
    small, masked = halved(Net(lambda net, x, y: windows(y, 4)))
    for height, width in ((32, 32), (64, 40), (24, 72)):
        x = torch.randn(2, 3, height, width)
        torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)


def test_a_table_that_is_stretched_to_the_size() -> None:
    small, masked = halved(Net(lambda net, x, y: y + F.interpolate(net.table, size=y.shape[2:])))
    for height, width in ((32, 32), (64, 64), (33, 47)):
        x = torch.randn(3, 3, height, width)
        torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)


def test_another_size_survives_a_file_and_an_export(tmp_path: object) -> None:
    net = Net(FOLLOW["interpolate"])
    small, masked = halved(net)
    plan = gl.uniform_plan(gl.trace(net, torch.zeros(1, 3, 32, 32)), net, keep=0.5)
    gl.save_pruned(str(tmp_path), small, plan)
    loaded = gl.load_pruned(str(tmp_path), Net(FOLLOW["interpolate"]))
    auto = torch.export.Dim.AUTO
    x = torch.randn(2, 3, 48, 40)
    exported = torch.export.export(small, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},)).module()
    y = torch.randn(3, 3, 34, 70)
    for each in (loaded, exported):
        torch.testing.assert_close(each(y), masked(y), rtol=1e-4, atol=1e-5)


class Stretched(nn.Module):
    """Adds a table to prunable channels, stretched to their size: it cannot be one parameter for all sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)
        self.table = nn.Parameter(torch.randn(1, 16, 4, 4))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = (y + F.interpolate(self.table, size=y.shape[2:])).relu()
        u, v = y.split([8, 8], 1)
        return self.o(torch.cat([self.b(u), v], 1))


def test_a_folded_table_holds_for_one_size_and_says_so() -> None:
    net = Stretched()
    topology = gl.trace(net, torch.zeros(1, 3, 32, 32))
    small = gl.apply_plan(net, gl.uniform_plan(topology, net, keep=0.5))
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 4, 32, 32)
    with pytest.raises(AssertionError, match=r"this network takes 32×32 alone.*is computed for it"):
        small(torch.zeros(2, 3, 64, 64))
