"""Data modules: images in three disjoint splits, `train`, `reward` and `test`."""

from gnnrl_lightning.core.samples import IMAGENET, HeldImages, Preprocessing
from gnnrl_lightning.data.cifar import CifarDataModule
from gnnrl_lightning.data.digits import DigitsDataModule
from gnnrl_lightning.data.folder import FolderDataModule
from gnnrl_lightning.data.module import ImageDataModule

__all__ = [
    "IMAGENET",
    "CifarDataModule",
    "DigitsDataModule",
    "FolderDataModule",
    "HeldImages",
    "ImageDataModule",
    "Preprocessing",
]
