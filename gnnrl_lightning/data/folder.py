"""Class folders, or tars of them, from small pictures to ImageNet."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gnnrl_lightning.core.checks import UserError, require_number, require_whole
from gnnrl_lightning.core.samples import Preprocessing
from gnnrl_lightning.data.held_out import HELD_OUT
from gnnrl_lightning.data.image_files import TAR_SUFFIXES, ImageFiles, index_files, is_tar
from gnnrl_lightning.data.images import FileImages, ImageSet, cut, in_memory
from gnnrl_lightning.data.module import ImageDataModule, root_path

log = logging.getLogger(__name__)
_PROBED = 32


class FolderDataModule(ImageDataModule):
    """Images `<class>/<file>` in folders or tars; the classes are numbered in the order of their sorted names.

    `root` holds `train` and `test` (or `val`), each a folder or a `.tar`, `.tar.gz` or `.tgz`. Where there is only one
    of them, or `root` is itself a folder of class folders or a tar, a fixed part of it is the test split and the rest
    stands in for the training set. Where there are `test` and `val`, `val` is read with `reward_split=held_out` alone,
    and is the reward split then.

    Images of one square size of at most 64 pixels are held in memory; larger ones are decoded when they are used and
    transformed as the network's preprocessing says. A plain `.tar` is read at random on disk; a compressed one is
    decompressed into memory.

    Args:
        root: the folder or tar.
        size: side in pixels that the network is fed; null keeps small images as they are and brings others to the size
            of the network's preprocessing.
        resize: shorter side in pixels that large images are brought to before their centre is cut; null keeps the
            proportion to `size` that the network's preprocessing has, but never enlarges a set that was brought to one
            smaller side before.
        test_fraction: share of the only set that is the test split, in (0, 1).
        num_workers: processes that decode large images.
        labels: whether images have labels; false takes images that lie anywhere in the folders or tars, in no classes.
        **common: see `ImageDataModule`.
    """

    def __init__(
        self,
        root: str,
        size: int | None,
        resize: int | None,
        test_fraction: float,
        num_workers: int,
        labels: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root = root_path(root)
        self.size = size
        self.resize = resize
        self.test_fraction = test_fraction
        self.num_workers = num_workers
        self.labelled = labels
        self._files: list[ImageFiles] = []

    def check(self) -> None:
        """Find wrong settings; lists the names of the images.

        Raises:
            UserError: a setting is out of its range, `root` is absent or without images, or the classes of its sets
                differ from each other or from `num_classes`.
        """
        if not isinstance(self.labelled, bool):
            raise UserError(
                f"data.labels={self.labelled} is neither true nor false; use data.labels=true or data.labels=false."
            )
        super().check()
        for key in ("size", "resize"):
            if getattr(self, key) is not None:
                require_whole(f"data.{key}", getattr(self, key), 1)
        crop = self._scaled().crop
        if self.resize is not None and self.resize < crop:
            raise UserError(f"data.resize={self.resize} is smaller than the centre that is cut; give {crop} or more.")
        require_number("data.test_fraction", self.test_fraction, above=0, below=1)
        require_whole("data.num_workers", self.num_workers, 0)
        files = self._indexed()
        test = len(files[1]) if len(files) == 2 else self._test_images(files[0])
        training = len(files[0]) if len(files) == 2 else len(files[0]) - test
        self._check_found(len(files[0].classes) if self.labelled else self.num_classes, training, test)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Decode small images, or only index large ones."""
        files = self._indexed()
        sets = self._in_memory(files)
        if not sets:
            to = self._scaled()
            if self.resize is None:
                to = replace(to, resize=_prepared_side(files, to))
            sets = [FileImages(each, np.arange(len(each)), to) for each in files]
            self.loader_workers = min(self.num_workers, os.cpu_count() or 1)
        self._files = []
        if len(sets) == 2:
            return sets[0], sets[1]
        test, rest = cut(sets[0], self._test_images(files[0]))
        return rest, test

    def _in_memory(self, files: list[ImageFiles]) -> list[ImageSet]:
        """All sets in memory, or none if one has large images or the sizes differ."""
        sets: list[ImageSet] = []
        for each in files:
            images = in_memory(each, self.size, self.preprocessing.interpolation)
            if images is None or (sets and images.side != sets[0].side):
                return []
            sets.append(images)
        return sets

    def _scaled(self) -> Preprocessing:
        """The network's preprocessing with `size` and `resize` in it."""
        to = self.preprocessing
        crop = self.size or to.crop
        return replace(to, crop=crop, resize=self.resize or round(crop * to.resize / to.crop))

    def _test_images(self, files: ImageFiles) -> int:
        return max(1, round(self.test_fraction * len(files)))

    def _indexed(self) -> list[ImageFiles]:
        """The training and the test images, or the only images there are; listed once."""
        if not self._files:
            files = [index_files(path, self.labelled) for path in self._located()]
            apart = self._rewards_apart()
            for other in [*files[1:], *([apart] if apart else [])]:
                differing = set(files[0].classes) ^ set(other.classes)
                if differing:
                    raise UserError(
                        f"{files[0].path} and {other.path} must have the same classes but {min(differing)!r} is in "
                        "one of them only; mend them or give another data.root=<path>."
                    )
            if apart and apart.path.resolve() in [each.path.resolve() for each in files]:
                raise UserError(
                    f"reward_split={self.reward_split} are images to train on or to test on; use reward_split=train or "
                    "reward_split=held_out, which take a part of them."
                )
            self._files = files
        return self._files

    def _rewards_apart(self) -> ImageFiles | None:
        """The images that are for rewards alone: those of `val` where there is a `test` beside it."""
        if self._apart is None and self.reward_split == HELD_OUT and self.root.is_dir():
            test, val = (_find_set(self.root, name, self.labelled) for name in ("test", "val"))
            self._apart = index_files(val, self.labelled) if test and val else None
        return super()._rewards_apart()

    def _located(self) -> list[Path]:
        """Where the training and the test images are, or the only ones."""
        if not self.root.exists():
            raise UserError(
                f"data.root={self.root} does not exist; give a folder of class folders or a .tar of them, "
                "e.g. data.root=$HOME/cifar10, or use data=digits."
            )
        if not self.root.is_dir():
            if not is_tar(self.root):
                raise UserError(
                    f"data.root={self.root} is neither a folder nor a {', '.join(TAR_SUFFIXES)}; "
                    "give a folder of class folders or a .tar of them."
                )
            return [self.root]
        train, test, val = (_find_set(self.root, name, self.labelled) for name in ("train", "test", "val"))
        return [path for path in (train, test or val) if path is not None] or [self.root]


def _prepared_side(files: list[ImageFiles], to: Preprocessing) -> int:
    """The shorter side to resize to: that of the images where all were brought to one between crop and resize.

    Enlarging such images again and cutting their centre would throw away a border that the network should see.
    """
    rows = np.linspace(0, len(files[-1]) - 1, min(_PROBED, len(files[-1])), dtype=int)
    sides = {min(files[-1].open(row).size) for row in rows}
    side = sides.pop()
    if sides or not to.crop <= side < to.resize:
        return to.resize
    log.info(
        "%s: images are %d pixels on the shorter side already; they are not enlarged to %d",
        files[-1].path,
        side,
        to.resize,
    )
    return side


def _find_set(root: Path, name: str, labelled: bool) -> Path | None:
    """A folder of folders or a tar of that name; ImageNet's `test`, images without classes, is one without labels."""
    folder = root / name
    if folder.is_dir() and any(entry.is_dir() or not labelled for entry in folder.iterdir()):
        return folder
    tars = [root / f"{name}{suffix}" for suffix in TAR_SUFFIXES]
    return next((path for path in tars if is_tar(path)), None)
