"""Data modules: images in three disjoint splits, `train`, `reward` and `test`."""

from gnnrl_lightning.data.cifar import CifarDataModule
from gnnrl_lightning.data.digits import DigitsDataModule
from gnnrl_lightning.data.folder import FolderDataModule
from gnnrl_lightning.data.module import ImageDataModule
from gnnrl_lightning.data.preprocessing import IMAGENET, HeldImages, Preprocessing

__all__ = [
    "IMAGENET",
    "CifarDataModule",
    "DigitsDataModule",
    "FolderDataModule",
    "HeldImages",
    "ImageDataModule",
    "Preprocessing",
]
