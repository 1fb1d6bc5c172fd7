"""Inputs held in memory: images, as the weights of a network want them, or whatever else it takes."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gnnrl_lightning.core.inputs import Inputs, changed, count, laid_out, tensors_in


@dataclass(frozen=True)
class Preprocessing:
    """What the weights of a network expect of an image.

    `mean` and `std` are per channel, for pixels in [0, 1]. `resize` (shorter side) and `crop` (centre square) are in
    pixels, `interpolation` is a value of `torchvision.transforms.InterpolationMode`; sets of small images use
    `mean` and `std` only.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int
    resize: int
    interpolation: str

    def __post_init__(self) -> None:
        # A plan's JSON holds lists.
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn uint8 pixels [B, 3, S, S] into the float32 input of the network, on their device."""
        mean = torch.tensor(self.mean).mul(255).view(-1, 1, 1).to(pixels.device)
        std = torch.tensor(self.std).mul(255).view(-1, 1, 1).to(pixels.device)
        return pixels.float().sub_(mean).div_(std)


class Samples(Protocol):
    """Inputs of a network that are held in memory: those of its training, or others."""

    @property
    def device(self) -> torch.device:
        """Where they lie."""

    @property
    def varied(self) -> bool:
        """Whether statistics of them mean anything: false if all samples are the same, or there is one."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, rows: slice | Tensor) -> Inputs:
        """The network's inputs of some of them."""

    def first(self, count: int | None) -> "Samples":
        """The first ones; None: all."""

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> "Samples":
        """The same on another device."""


class HeldInputs:
    """Inputs of whatever structure.

    Args:
        inputs: All of them as one batch.
        shared: Which of its tensors all samples share, in order; None: those whose first dimension is another than that
            of the first tensor that has one.
    """

    def __init__(self, inputs: Inputs, shared: tuple[bool, ...] | None = None) -> None:
        self.inputs = inputs
        total = count(inputs)
        found = tuple(not x.dim() or len(x) != total for x in tensors_in(inputs))
        # Kept from batch to batch: a smaller one may have as many samples as a shared tensor has rows.
        self.shared = found if shared is None else shared

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return tensors_in(self.inputs)[0].device

    @property
    def varied(self) -> bool:
        """Whether any input differs from image to image."""
        each = zip(tensors_in(self.inputs), self.shared, strict=True)
        return any(bool((x != x[:1]).any()) for x, shared in each if not shared)

    def __len__(self) -> int:
        return count(self.inputs)

    def __getitem__(self, rows: slice | Tensor) -> Inputs:
        """Some of them."""
        shared = iter(self.shared)
        return changed(self.inputs, lambda x: x if next(shared) else x[rows])

    def first(self, count: int | None) -> "HeldInputs":
        """The first ones; None: all."""
        return HeldInputs(self[slice(count)], self.shared)

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> "HeldInputs":
        """The same on another device."""
        return HeldInputs(laid_out(changed(self.inputs, lambda x: x.to(device)), memory_format), self.shared)


class HeldImages:
    """Images held in memory as pixels, a quarter of what the network's input takes; what is taken out is normalised.

    Args:
        pixels: uint8 [N, 3, S, S].
        preprocessing: what the network expects of them.
    """

    def __init__(self, pixels: Tensor, preprocessing: Preprocessing) -> None:
        self.pixels = pixels
        self.preprocessing = preprocessing

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.pixels.device

    @property
    def varied(self) -> bool:
        """Whether statistics of them mean anything: false if each image is of one colour, or all are the same."""
        flat = self.pixels.flatten(2)
        return bool((flat != flat[:, :, :1]).any()) and bool((self.pixels != self.pixels[:1]).any())

    def __len__(self) -> int:
        return len(self.pixels)

    def first(self, count: int | None) -> "HeldImages":
        """The first ones; None: all."""
        return HeldImages(self.pixels[:count], self.preprocessing)

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        """The network's input of some of the images, float32 [..., 3, S, S], where the pixels are held."""
        return self.preprocessing.normalise(self.pixels[rows])

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> "HeldImages":
        """The same images on another device, from where the input inherits its memory format."""
        return HeldImages(self.pixels.to(device, memory_format=memory_format), self.preprocessing)


IMAGENET = Preprocessing(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=224, resize=256, interpolation="bilinear"
)
