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
        """Turn uint8 pixels [B, 3, S, S] into the float32 input of the network."""
        mean = torch.tensor(self.mean).mul(255).view(-1, 1, 1)
        std = torch.tensor(self.std).mul(255).view(-1, 1, 1)
        return pixels.float().sub_(mean).div_(std)


IMAGENET = Preprocessing(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=224, resize=256, interpolation="bilinear"
)
