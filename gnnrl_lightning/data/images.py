"""Sets of labelled images, in memory or read on demand, and the fixed permutation that cuts them."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from gnnrl_lightning.core.samples import Preprocessing
from gnnrl_lightning.data.image_files import ImageFiles

SPLIT_SEED = 2022
"""Seeds every cut: a constant, so that all runs and rivals see the same splits whatever their seed."""
MEMORY_SIDE = 64
"""Images up to this side, in pixels, are held in memory."""
_PADDING = 4


class ImageSet(Protocol):
    """Images that are all fed to the network as squares of `side` pixels, with `labels` int64 [N]."""

    labels: Tensor

    @property
    def side(self) -> int:
        """Side of the square, in pixels."""

    def subset(self, rows: np.ndarray) -> Self:
        """The images of the given rows, in the given order."""

    def evaluation(self, rows: Sequence[int]) -> Tensor:
        """Images as they are, uint8 [B, 3, S, S]."""

    def augmented(self, rows: Sequence[int], flip: bool, generator: torch.Generator) -> Tensor:
        """Images randomly cropped and, with `flip`, mirrored; uint8 [B, 3, S, S]."""


_Set = TypeVar("_Set", bound=ImageSet)


class MemoryImages:
    """Small images as one uint8 tensor [N, 3, S, S], augmented a batch at a time."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels = pixels
        self.labels = labels

    @property
    def side(self) -> int:
        """Side of the square, in pixels."""
        return self.pixels.shape[-1]

    def subset(self, rows: np.ndarray) -> "MemoryImages":
        """The images of the given rows, in the given order."""
        index = torch.from_numpy(rows)
        return MemoryImages(self.pixels[index], self.labels[index])

    def evaluation(self, rows: Sequence[int]) -> Tensor:
        """Images as they are, uint8 [B, 3, S, S]."""
        return self.pixels[torch.as_tensor(rows)]

    def augmented(self, rows: Sequence[int], flip: bool, generator: torch.Generator) -> Tensor:
        """Pad by 4 black pixels, cut at a random place and, with `flip`, mirror every other image.

        The generator is where the pixels are.
        """
        batch, side, device = len(rows), self.side, self.pixels.device
        padded = F.pad(self.evaluation(rows), [_PADDING] * 4)
        shift = torch.randint(2 * _PADDING + 1, (2, batch, 1), generator=generator, device=device)
        y, x = shift + torch.arange(side, device=device)  # [B, S] each
        if flip:
            mirrored = torch.rand(batch, 1, generator=generator, device=device) < 0.5
            x = torch.where(mirrored, x.flip(1), x)
        image = torch.arange(batch, device=device).view(-1, 1, 1)
        return padded[image, :, y.unsqueeze(2), x.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()


class FileImages:
    """Large images, read and decoded when asked for: `rows` of `files`, transformed as `preprocessing` says."""

    def __init__(self, files: ImageFiles, rows: np.ndarray, preprocessing: Preprocessing) -> None:
        self.files = files
        self.rows = rows
        self.preprocessing = preprocessing
        self.labels = torch.from_numpy(files.labels[rows])

    @property
    def side(self) -> int:
        """Side of the square, in pixels."""
        return self.preprocessing.crop

    def subset(self, rows: np.ndarray) -> "FileImages":
        """The images of the given rows, in the given order."""
        return FileImages(self.files, self.rows[rows], self.preprocessing)

    def evaluation(self, rows: Sequence[int]) -> Tensor:
        """Resize the shorter side and cut the centre; uint8 [B, 3, S, S]."""
        to = self.preprocessing
        return torch.stack(
            [
                TF.pil_to_tensor(resized_centre(image, to.resize, to.crop, to.interpolation))
                for image in self._decoded(rows)
            ]
        )

    def augmented(self, rows: Sequence[int], flip: bool, generator: torch.Generator) -> Tensor:
        """Cut a random region at a random scale and, with `flip`, mirror every other image."""
        crop = v2.RandomResizedCrop(
            self.preprocessing.crop, interpolation=v2.InterpolationMode(self.preprocessing.interpolation)
        )
        with _lent_to_torchvision(generator):
            images = torch.stack([TF.pil_to_tensor(crop(image)) for image in self._decoded(rows)])
        if flip:
            mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        return images

    def _decoded(self, rows: Sequence[int]) -> list[Image.Image]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(self.files.open, self.rows[rows]))


def in_memory(files: ImageFiles, size: int | None, interpolation: str) -> MemoryImages | None:
    """Decode a whole set of small images; None if it is not one.

    It is one if `size` is given and at most 64 pixels (the images are then brought to it), or if all images are squares
    of one such size.
    """
    side = size or min(files.open(0).size)
    if side > MEMORY_SIDE:
        return None
    pixels = np.empty((len(files), 3, side, side), dtype=np.uint8)
    for index in range(len(files)):
        image = files.open(index)
        if image.size != (side, side):
            if size is None:
                return None
            image = resized_centre(image, side, side, interpolation)
        pixels[index] = np.asarray(image).transpose(2, 0, 1)
    return MemoryImages(torch.from_numpy(pixels), torch.from_numpy(files.labels))


def resized_centre(image: Image.Image, resize: int, crop: int, interpolation: str) -> Image.Image:
    """Bring the shorter side to `resize` pixels and cut the centre square of `crop` pixels."""
    image = TF.resize(image, [resize], interpolation=v2.InterpolationMode(interpolation))
    return TF.center_crop(image, [crop])


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """A fixed permutation of which every prefix holds each class in its share, to an image or two.

    The n images of a class are spread over n equal stretches of [0, 1), one each at a random place, and all are sorted:
    with one image per class that is a plain random permutation.
    """
    random = np.random.default_rng(SPLIT_SEED)
    counts = np.bincount(labels)
    by_class = np.lexsort((random.random(len(labels)), labels))  # classes in blocks, shuffled within
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = (rank + random.random(len(labels))) / np.repeat(counts, counts)
    return by_class[np.argsort(place, kind="stable")]


def cut(images: _Set, count: int) -> tuple[_Set, _Set]:
    """Cut `count` images off a set; both parts are in their stratified order and share no image."""
    order = stratified_order(images.labels.numpy())
    return images.subset(order[:count]), images.subset(order[count:])


@contextmanager
def _lent_to_torchvision(generator: torch.Generator) -> Iterator[None]:
    """Let torchvision's transforms, which draw from the global generator only, draw from an owned one."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        yield
        generator.set_state(torch.get_rng_state())
