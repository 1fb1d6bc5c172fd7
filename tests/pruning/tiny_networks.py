"""One tiny network for each kind of operation that channels go through, with what can be pruned of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from oracle import Pruning
from torch import Tensor, nn
from torch.nn import functional as F

from gnnrl_lightning.topology import Topology, trace

EXAMPLE = torch.zeros(1, 3, 8, 8)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


class Net(nn.Module):
    """A stem, anything behind it, and a linear classifier of pooled channels."""

    def __init__(self, inner: nn.Module | Callable[[Tensor], Tensor], width: int = 8, out: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.inner = inner
        self.head = nn.Linear(out, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.norm(self.stem(x)).relu()).mean((2, 3)))


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ShuffleV2(nn.Module):
    """Two units of ShuffleNet-v2: half of the channels pass through, the halves are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 4, 3, padding=1, groups=4),
                nn.BatchNorm2d(4, eps=0.1, momentum=0.3),
                nn.Conv2d(4, 4, 1),
                nn.ReLU(),
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            left, right = x.chunk(2, dim=1)
            x = shuffle(torch.cat([left, branch(right)], 1), 2)
        return x


class ShuffleV1(nn.Module):
    """A unit of ShuffleNet-v1: grouped convolution, shuffle, depth-wise, another grouped convolution, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(12, 12, 1, groups=3, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.second = nn.Conv2d(12, 12, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.second(self.depthwise(shuffle(self.norm(self.first(x)).relu(), 3)))).relu()


class Res2(nn.Module):
    """Res2Net: the output of each convolution is added to the input of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = torch.split(x, 4, 1)
        first = self.a(first).relu()
        second = self.b(first + second).relu()
        return torch.cat([first, second, third], 1)


class CrossStage(nn.Module):
    """CSP: one part of the channels is worked on, the other is joined later; the parts are unequal slices."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 5, 3, padding=1)
        self.join = nn.Conv2d(7, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([x[:, :2], self.conv(x[:, 2:]).relu()], 1))


class OptionA(nn.Module):
    """A shortcut that pads by numbers in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.b(self.a(x).relu()) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))).relu()


class SelectiveKernel(nn.Module):
    """SKNet: a softmax over two branches weighs their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Conv2d(8, 8, k, padding=k // 2) for k in (1, 3))
        self.reduce = nn.Conv2d(8, 4, 1)
        self.select = nn.Conv2d(4, 16, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([path(x).relu() for path in self.paths], dim=1)
        attention = self.select(self.reduce(x.sum(1).mean((2, 3), keepdim=True)).relu())
        n, c, h, w = attention.shape
        return (x * attention.view(n, 2, c // 2, h, w).softmax(1)).sum(1)


class SplitAttention(nn.Module):
    """ResNeSt: a grouped convolution gives radix 2 times the channels; a softmax over the radix weighs them."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.conv = nn.Conv2d(8, 16, 3, padding=1, groups=2 * groups, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.fc1 = nn.Conv2d(8, 4, 1, groups=groups)
        self.fc2 = nn.Conv2d(4, 16, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        n, rc, h, w = x.shape
        x = x.reshape(n, 2, rc // 2, h, w)
        gap = x.sum(dim=1).mean((2, 3), keepdim=True)
        attention = self.fc2(self.fc1(gap).relu()).view(n, self.groups, 2, -1).transpose(1, 2)
        attention = attention.softmax(dim=1).reshape(n, 2, rc // 2, 1, 1)
        return (x * attention).sum(dim=1)


class Standardised(nn.Conv2d):
    """A convolution whose weight is computed: each filter has mean 0 and variance 1."""

    def computed(self) -> Tensor:
        flat = self.weight.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True) + 1e-5).sqrt()
        return flat.view_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.computed(), self.bias, self.stride, self.padding)


def standardised() -> nn.Sequential:
    return nn.Sequential(Standardised(8, 6, 3), nn.ReLU(), Standardised(6, 8, 1))


class Blur(nn.Module):
    """Subsampling behind a fixed kernel, one copy a channel."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(row, row).expand(8, 1, 3, 3).clone())
        self.conv = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.kernel, stride=2, groups=8)
        return self.conv(x).relu()


class Scale(nn.Module):
    """A residual branch behind a layer scale whose view has the number of channels in it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.gamma = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) * self.gamma.view(1, 8, 1, 1)


class Squeeze(nn.Module):
    """Squeeze and excitation with linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(8, 3), nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.shape
        return x * self.expand(self.reduce(x.mean((2, 3)).view(n, c)).relu()).sigmoid().view(n, c, 1, 1)


class Efficient(nn.Module):
    """Efficient channel attention: a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid()
        return x * y.view(x.shape[0], -1, 1, 1)


class SpatialAttention(nn.Module):
    """CBAM: a map from the mean and the maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


def transposed() -> nn.Module:
    """A decoder: a depth-wise and a grouped transposed convolution."""
    return nn.Sequential(nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8), nn.ConvTranspose2d(8, 12, 3, groups=2))


class LayerNormBlock(nn.Module):
    """A ConvNeXt block: depth-wise, then channels last for LayerNorm and an MLP."""

    def __init__(self, norm: type[nn.LayerNorm] | type[nn.RMSNorm]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = norm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


class GroupNormBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x).relu())


def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v


def einsums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.einsum("bhnd,bhmd->bhnm", q, k) * q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("bhnm,bhmd->bhnd", weights, v)


class Transformer(nn.Module):
    """A patch embedding, one block of attention with two heads, and a linear classifier of a class token."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        n, length, channels = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, 2, channels // 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.project(self.attend(q, k, v).transpose(1, 2).reshape(n, length, channels))
        return self.head(self.norm2(x)[:, 0])


class Pyramid(nn.Module):
    """Feature maps of two scales, in whatever holds them."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.pack = pack
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.fine, self.coarse = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).relu()
        y = self.down(x).relu()
        return self.pack(self.fine(x), self.coarse(y))


class FlatView(nn.Module):
    """A flattened map whose length is in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.slope = nn.PReLU(6)
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.slope(self.up(self.conv(x).relu())), 2).view(-1, 6 * 16))


@dataclass(frozen=True)
class Case:
    """A tiny network, and what is known of it.

    Attributes:
        build: Makes it.
        widths: Of its groups, in the order of the network.
        rewritten: Whether numbers of channels in its `forward` keep some plans from surgery.
        oracle: What says what it must compute without some channels: the original with `masked` layers, or with
            `silent` producers as well; its `inner` on the channels of the stem that are left, which is all that it
            sees then (`narrow`); or the `twin` that has the values of computed weights for its own.
    """

    build: Callable[[], nn.Module]
    widths: tuple[int, ...]
    rewritten: bool = False
    oracle: str = "masked"


CASES = {
    "shuffle": Case(lambda: Net(lambda x: shuffle(x, 2)), (8,), rewritten=True),
    "shuffle module": Case(lambda: Net(nn.ChannelShuffle(4)), (8,), rewritten=True),
    "shuffle v2": Case(lambda: Net(ShuffleV2()), (2, 2, 4, 2, 2, 4), rewritten=True),
    "shuffle v1": Case(lambda: Net(ShuffleV1(), 12, 12), (4, 4), rewritten=True),
    "chunk": Case(lambda: Net(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), (8,), rewritten=True),
    "split": Case(lambda: Net(Res2(), 12, 12), (4, 4, 4, 4), rewritten=True),
    "slice": Case(lambda: Net(CrossStage()), (2, 6, 5, 8), rewritten=True),
    "strided slice": Case(lambda: Net(lambda x: x[:, ::2] * x[:, 1::2].sigmoid(), out=4), (4,)),
    "strided slices": Case(lambda: Net(lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1)), (8,), rewritten=True),
    "functional pad": Case(lambda: Net(OptionA(), out=16), (8, 16, 8), rewritten=True),
    "selective kernel": Case(lambda: Net(SelectiveKernel()), (8, 8, 4)),
    "split attention": Case(lambda: Net(SplitAttention()), (2, 4, 2)),
    "standardised": Case(lambda: Net(standardised()), (8, 6, 8), rewritten=True, oracle="twin"),
    "blur": Case(lambda: Net(Blur(), out=6), (8, 6), rewritten=True),
    "layer scale": Case(lambda: Net(Scale()), (8,), rewritten=True),
    "gate": Case(lambda: Net(lambda x: F.glu(x, 1), out=4), (4,)),
    "logarithm": Case(lambda: Net(lambda x: torch.log1p(x) + (x + 1).log()), (8,)),
    "antialiased": Case(lambda: Net(lambda x: F.interpolate(x, size=3, mode="bilinear", antialias=True)), (8,)),
    "transposed": Case(lambda: Net(transposed(), out=12), (4, 6)),
    "squeeze": Case(lambda: Net(Squeeze()), (8, 3)),
    "efficient attention": Case(lambda: Net(Efficient()), (8,), oracle="narrow"),
    "spatial attention": Case(lambda: Net(SpatialAttention()), (8, 1), oracle="narrow"),
    "mean over channels": Case(lambda: Net(lambda x: x - x.mean(1, keepdim=True)), (8,), oracle="narrow"),
    "normalised": Case(lambda: Net(lambda x: F.normalize(x, dim=1)), (8,), oracle="narrow"),
    "norm of all": Case(
        lambda: Net(lambda x: F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)), (8,), oracle="narrow"
    ),
    "layer norm": Case(lambda: Net(LayerNormBlock(nn.LayerNorm)), (8, 12)),
    "rms norm": Case(lambda: Net(LayerNormBlock(nn.RMSNorm)), (8, 12)),
    "group norm": Case(lambda: Net(GroupNormBlock()), (4,)),
    "attention": Case(lambda: Transformer(products), (8, 4), rewritten=True, oracle="silent"),
    "scaled dot product": Case(
        lambda: Transformer(F.scaled_dot_product_attention), (8, 4), rewritten=True, oracle="silent"
    ),
    "einsum": Case(lambda: Transformer(einsums), (8, 4), rewritten=True, oracle="silent"),
    "tuple": Case(lambda: Pyramid(lambda a, b: (a, b)), (8, 8)),
    "list": Case(lambda: Pyramid(lambda a, b: [a, b]), (8, 8)),
    "dict": Case(lambda: Pyramid(lambda a, b: {"fine": a, "coarse": [b]}), (8, 8)),
    "view": Case(FlatView, (8, 6), rewritten=True),
}


@cache
def traced(name: str) -> tuple[nn.Module, Topology]:
    """One of these networks, in eval mode and with random numbers everywhere. Nobody changes it."""
    torch.manual_seed(0)
    model = Pruning().randomize(CASES[name].build())
    return model, trace(model, EXAMPLE)
