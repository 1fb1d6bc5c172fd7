"""Scikit-learn's handwritten digits: real images that need no download."""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from gnnrl_lightning.core.checks import UserError, require_whole
from gnnrl_lightning.data.images import MemoryImages, cut
from gnnrl_lightning.data.module import ImageDataModule

_IMAGES, _CLASSES, _SIDE, _WHITE = 1797, 10, 8, 16


class DigitsDataModule(ImageDataModule):
    """1,797 grey images of 8×8 pixels, shown at `size` pixels in three equal channels, never mirrored.

    Args:
        size: side in pixels that the images are enlarged to.
        test_images: size of the test split.
        **common: see `ImageDataModule`.
    """

    def __init__(self, size: int, test_images: int, **common: Any) -> None:
        super().__init__(flip=False, **common)
        self.size = size
        self.test_images = test_images

    def check(self) -> None:
        """Find wrong settings.

        Raises:
            UserError: a setting is out of its range.
        """
        super().check()
        require_whole("data.size", self.size, _SIDE)
        require_whole("data.test_images", self.test_images, 1)
        if self.test_images > _IMAGES // 2:
            raise UserError(
                f"data.test_images={self.test_images} is out of range; give 1 to {_IMAGES // 2} of {_IMAGES} digits."
            )
        self._check_found(_CLASSES, _IMAGES - self.test_images, self.test_images)

    def load(self) -> tuple[MemoryImages, MemoryImages]:
        """Enlarge the digits and cut the test split off."""
        digits = load_digits()
        grey = torch.from_numpy(digits.images).float().mul(255 / _WHITE).unsqueeze(1)
        shown = F.interpolate(grey, size=(self.size, self.size), mode="bilinear")
        pixels = shown.round().to(torch.uint8).repeat(1, 3, 1, 1)
        test, rest = cut(MemoryImages(pixels, torch.from_numpy(digits.target).long()), self.test_images)
        return rest, test
