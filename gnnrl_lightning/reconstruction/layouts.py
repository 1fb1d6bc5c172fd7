"""How operations lay out what they read and their weights: what is read as rows of a matrix, and the weights as one.

A layer computes y = W x + b at every output position. Here x is its input there, channels × taps: the k² places of a
convolution's kernel, the positions of a flattened map, one for a linear layer. All that follows (moments, refit, error
curves) knows nothing else of a layer.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """How one operation lays out its input and its weight."""

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [blocks, rows, channels, taps]."""

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrix`, in the shape and memory format of `like`."""

    def positions(self, x: Tensor) -> int:
        """Output positions of a batch of inputs."""

    def sample(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """About `count` random output positions of a batch, for `inputs` and `outputs`; all if there are no more."""

    def inputs(self, x: Tensor, sampled: Tensor) -> Tensor:
        """What is read at sampled positions of a batch, [blocks, positions, channels, taps]."""

    def outputs(self, y: Tensor, sampled: Tensor | None = None) -> Tensor:
        """Results, or gradients of them, at sampled or all positions, [blocks, positions, rows]."""


@dataclass(frozen=True)
class Convolution:
    """A convolution in any number of dimensions, transposed ones too.

    Attributes:
        kernel: Size of the kernel, one number a dimension, as the three that follow.
        stride: Steps of the input, of the output where transposed.
        padding: Zeros before the input's first value.
        padding_after: Zeros behind its last one: another number where padding="same" is uneven.
        dilation: Steps between the kernel's taps.
        groups: Blocks of rows that read channels of their own.
        transposed: Whether the kernel is laid over the output.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    padding_after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool

    def matrix(self, weight: Tensor) -> Tensor:
        """See `Layout`."""
        blocks = weight.unflatten(0, (self.groups, -1)).flatten(3)
        return blocks.transpose(1, 2) if self.transposed else blocks

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `Layout`."""
        blocks = matrix.transpose(1, 2) if self.transposed else matrix
        return torch.empty_like(like).copy_(blocks.reshape(like.shape))

    def positions(self, x: Tensor) -> int:
        """See `Layout`."""
        return len(x) * math.prod(len(places) for places in _places(self, x.shape[2:]))

    def sample(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """See `Layout`; the same positions of all images."""
        total, each = self.positions(x) // len(x), -(-count // len(x))
        return torch.randperm(total, generator=generator)[:each] if each < total else torch.arange(total)

    def inputs(self, x: Tensor, sampled: Tensor) -> Tensor:
        """See `Layout`."""
        places = _places(self, x.shape[2:])
        index: list[Any] = [slice(None), slice(None)]
        inside = torch.ones([len(sampled)] + [1] * len(places), dtype=torch.bool)
        for dimension, place in reversed(list(enumerate(places))):
            view = [len(sampled)] + [1] * len(places)
            view[1 + dimension] = -1
            read, size = place[sampled % len(place)].view(view), x.shape[2 + dimension]
            inside = inside & (read < size)
            index.insert(2, read.clamp(max=size - 1).to(x.device))
            sampled = sampled // len(place)
        patches = x[tuple(index)]  # [N, C, positions, *kernel]
        if not inside.all():
            patches = patches.masked_fill(~inside.to(x.device), 0)  # what is read outside
        patches = patches.flatten(3).unflatten(1, (self.groups, -1))
        return patches.permute(1, 0, 3, 2, 4).flatten(1, 2)

    def outputs(self, y: Tensor, sampled: Tensor | None = None) -> Tensor:
        """See `Layout`."""
        y = y.flatten(2)
        if sampled is not None:
            y = y[:, :, sampled.to(y.device)]
        return y.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


@lru_cache(maxsize=256)
def _places(layer: Convolution, sizes: torch.Size) -> list[Tensor]:
    """Where each tap of each output position reads, [positions, taps] a dimension; the size where outside."""
    places = []
    for size, kernel, stride, before, after, step in zip(
        sizes, layer.kernel, layer.stride, layer.padding, layer.padding_after, layer.dilation, strict=True
    ):
        taps = step * torch.arange(kernel)
        if layer.transposed:
            length = (size - 1) * stride - before - after + step * (kernel - 1) + 1
            offset = torch.arange(length).unsqueeze(1) + before - taps
            read, inside = offset.div(stride, rounding_mode="floor"), offset % stride == 0
        else:
            length = (size + before + after - step * (kernel - 1) - 1) // stride + 1
            read = stride * torch.arange(length).unsqueeze(1) + taps - before
            inside = torch.ones_like(read, dtype=torch.bool)
        places.append(torch.where(inside & (read >= 0) & (read < size), read, size))
    return places


@dataclass(frozen=True)
class Linear:
    """A linear layer, or a product with a weight.

    Attributes:
        columns: Which input each channel and tap is, [channels, taps]: a flattened map has several taps.
        transposed: Whether the weight's rows are the inputs.
    """

    columns: Tensor
    transposed: bool

    def matrix(self, weight: Tensor) -> Tensor:
        """See `Layout`."""
        rows = weight.T if self.transposed else weight
        return rows[:, self.columns.to(weight.device)].unsqueeze(0)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """See `Layout`."""
        result = torch.empty_like(like)
        (result.T if self.transposed else result)[:, self.columns.to(like.device)] = matrix[0].to(like)
        return result

    def positions(self, x: Tensor) -> int:
        """See `Layout`."""
        return x.numel() // x.shape[-1]

    def sample(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """See `Layout`."""
        total = self.positions(x)
        return torch.randperm(total, generator=generator)[:count] if count < total else torch.arange(total)

    def inputs(self, x: Tensor, sampled: Tensor) -> Tensor:
        """See `Layout`."""
        rows = x.reshape(-1, x.shape[-1])[sampled.to(x.device)]
        return rows[:, self.columns.to(x.device)].unsqueeze(0)

    def outputs(self, y: Tensor, sampled: Tensor | None = None) -> Tensor:
        """See `Layout`."""
        rows = y.reshape(1, -1, y.shape[-1])
        return rows if sampled is None else rows[:, sampled.to(y.device)]


def convolution(arguments: dict[str, Any], shape: torch.Size) -> Convolution:
    """The layout of a convolution with these arguments, by the names of its schema, and a weight of this shape."""
    kernel = tuple(shape[2:])

    def each(name: str) -> tuple[int, ...]:
        value = arguments[name]
        values = list(value) if isinstance(value, list | tuple) else [value]
        return tuple(values * len(kernel) if len(values) == 1 else values)

    stride, dilation = each("stride"), each("dilation")
    transposed = "output_padding" in arguments
    if arguments["padding"] == "valid":
        before = after = (0,) * len(kernel)
    elif arguments["padding"] == "same":
        total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        before = tuple(each // 2 for each in total)
        after = tuple(each - each // 2 for each in total)
    else:
        before = after = each("padding")
    if transposed:  # a longer output is one with less cut from its end
        after = tuple(pad - more for pad, more in zip(after, each("output_padding"), strict=True))
    return Convolution(kernel, stride, before, after, dilation, arguments["groups"], transposed)
