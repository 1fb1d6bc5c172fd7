"""Reward images: cut from the training images, or images that the network was not trained on.

A network knows the images that it was trained on by heart. Near a good plan rewards on them say nothing about others.
"""

from pathlib import Path

import numpy as np

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.samples import Preprocessing
from gnnrl_lightning.data.image_files import TAR_SUFFIXES, ImageFiles, index_files, is_tar
from gnnrl_lightning.data.images import MEMORY_SIDE, FileImages, ImageSet, MemoryImages, cut, in_memory

TRAIN, HELD_OUT = "train", "held_out"
"""What `reward_split` may be besides a path."""

_MOST = 5000
"""Reward images where nobody says how many: they are held in memory."""


def index_rewards(path: Path, labelled: bool, num_classes: int) -> ImageFiles:
    """List the images of the path that `reward_split` names, without decoding any.

    Raises:
        UserError: there is no such path, or its classes are not so many.
    """
    if not path.is_dir() and not is_tar(path):
        raise UserError(
            f"reward_split={path} is neither train nor held_out nor a folder or a {', '.join(TAR_SUFFIXES)} that "
            f"exists; use reward_split=train, reward_split=held_out or reward_split=<path of images>."
        )
    files = index_files(path, labelled, "reward_split")
    if labelled and len(files.classes) != num_classes:
        raise UserError(
            f"reward_split={path} has {len(files.classes)} classes but data.num_classes={num_classes}; "
            "give images of the same classes with reward_split=<path>, or use reward_split=held_out."
        )
    return files


def read_like(files: ImageFiles, other: ImageSet, preprocessing: Preprocessing) -> ImageSet:
    """The images of `files`, prepared as another set's are, so that a network may be fed either."""
    if isinstance(other, FileImages):
        return FileImages(files, np.arange(len(files)), other.preprocessing)
    if other.side <= MEMORY_SIDE:
        held = in_memory(files, other.side, preprocessing.interpolation)
        assert isinstance(held, MemoryImages)
        return held
    to = Preprocessing(preprocessing.mean, preprocessing.std, other.side, other.side, preprocessing.interpolation)
    return FileImages(files, np.arange(len(files)), to)


def provenance(reward_split: str, apart: ImageFiles | None, splits: dict[str, ImageSet]) -> str:
    """Which images rewards and accuracies are from, in a sentence; nothing where it is as usual, `train`."""
    if reward_split == TRAIN:
        return ""
    reward, test = (f"{len(splits[name].labels):,}" for name in ("reward", "test"))
    if apart is None:
        return (
            f"Rewards: {reward} images of one half of the test images (a fixed, stratified cut); "
            f"accuracies: the other half, {test} images."
        )
    where = f"{apart.path.name}/" if reward_split == HELD_OUT else reward_split
    return f"Rewards: {reward} images of {where}; accuracies: the {test} test images."


def cut_splits(
    images: ImageSet, test: ImageSet, apart: ImageSet | None, reward_split: str, count: int | None
) -> dict[str, ImageSet]:
    """Cut `train`, `reward` and `test`, which share no image, by fixed stratified permutations.

    Args:
        images: the training images.
        test: the test images.
        apart: images for the rewards alone; None: rewards are taken on a part of the training or the test images.
        reward_split: which of the two.
        count: how many reward images at most; None: 5,000, or half of the training images if that is fewer.
    """
    if reward_split == TRAIN:
        reward, train = cut(images, count or min(_MOST, len(images.labels) // 2))
        return {"train": train, "reward": reward, "test": _ordered(test)}
    if apart is None:
        apart, test = cut(test, len(test.labels) // 2)
    reward, _ = cut(apart, min(count or _MOST, len(apart.labels)))
    return {"train": _ordered(images), "reward": reward, "test": _ordered(test)}


def _ordered(images: ImageSet) -> ImageSet:
    """All images of a set in the order of which every prefix is stratified."""
    return cut(images, len(images.labels))[0]
