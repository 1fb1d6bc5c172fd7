"""How a network wants its images: the one thing that data modules learn from the weights."""

from dataclasses import dataclass

import torch
from torch import Tensor


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


class HeldImages:
    """Images held in memory as pixels, a quarter of what the network's input takes; what is taken out is normalised.

    Args:
        pixels: uint8 [N, 3, S, S].
        preprocessing: what the network expects of them.
    """

    def __init__(self, pixels: Tensor, preprocessing: Preprocessing) -> None:
        self.pixels = pixels
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        """The network's input of some of the images, float32 [..., 3, S, S], where the pixels are held."""
        return self.preprocessing.normalise(self.pixels[rows])

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> "HeldImages":
        """The same images on another device, from where the input inherits its memory format."""
        return HeldImages(self.pixels.to(device, memory_format=memory_format), self.preprocessing)


IMAGENET = Preprocessing(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=224, resize=256, interpolation="bilinear"
)
