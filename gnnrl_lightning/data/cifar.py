"""CIFAR-10 and CIFAR-100 as torchvision provides them, downloaded when absent."""

import os
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.ranks import alone
from gnnrl_lightning.data.images import MemoryImages
from gnnrl_lightning.data.module import ImageDataModule, root_path

_DATASETS = {10: CIFAR10, 100: CIFAR100}
_TRAINING_IMAGES, _TEST_IMAGES = 50_000, 10_000


class CifarDataModule(ImageDataModule):
    """60,000 images of 32×32 pixels; `num_classes` tells CIFAR-10 from CIFAR-100.

    Args:
        root: folder that holds, or will hold, torchvision's `cifar-10-batches-py` or `cifar-100-python`.
        **common: see `ImageDataModule`.
    """

    def __init__(self, root: str, **common: Any) -> None:
        super().__init__(**common)
        self.root = root_path(root)

    def check(self) -> None:
        """Find wrong settings.

        Raises:
            UserError: a setting is out of its range, or `root` is not a folder.
        """
        super().check()
        if self.num_classes not in _DATASETS:
            raise UserError(
                f"data.num_classes={self.num_classes} is not a CIFAR; use data=cifar10, data=cifar100, or data=folder."
            )
        if self.root.exists() and not self.root.is_dir():
            raise UserError(
                f"data.root={self.root} is not a folder; give one that holds or will hold torchvision's "
                f"{self._dataset.base_folder}, or use data=folder."
            )
        self._check_found(self.num_classes, _TRAINING_IMAGES, _TEST_IMAGES)

    @property
    def _dataset(self) -> type[CIFAR10]:
        return _DATASETS[self.num_classes]

    def prepare_data(self) -> None:
        """Download what is absent, once where jobs start together; a failed download leaves `root` as it was.

        Raises:
            UserError: it cannot be downloaded.
        """
        target = self.root / self._dataset.base_folder
        if target.exists():
            return
        try:
            with alone(self.root):
                if not target.exists():
                    self._download(target)
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(
                f"{self.name} is not in data.root={self.root} and cannot be downloaded ({error}); give a folder that "
                f"holds torchvision's {self._dataset.base_folder} with data.root=<path>, or use data=digits."
            ) from error

    def _download(self, target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=self.root.parent) as folder:
            self._dataset(folder, download=True)
            self.root.mkdir(exist_ok=True)
            os.replace(Path(folder) / self._dataset.base_folder, target)

    def load(self) -> tuple[MemoryImages, MemoryImages]:
        """Read both sets into memory.

        Raises:
            UserError: the files differ from the published ones.
        """
        try:
            train, test = (self._dataset(self.root, train=train) for train in (True, False))
        except RuntimeError as error:
            raise UserError(
                f"{self.root / self._dataset.base_folder} is damaged; delete it to download it again, "
                "or give another folder with data.root=<path>."
            ) from error
        return _in_memory(train), _in_memory(test)


def _in_memory(dataset: CIFAR10) -> MemoryImages:
    pixels = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return MemoryImages(pixels, torch.tensor(dataset.targets))
