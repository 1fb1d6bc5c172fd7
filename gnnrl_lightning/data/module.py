"""What all data modules share: the cut into train, reward and test, the loaders, and tensors for the search."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from gnnrl_lightning.core.checks import UserError, require_whole
from gnnrl_lightning.core.samples import HeldImages, Preprocessing
from gnnrl_lightning.data.held_out import HELD_OUT, TRAIN, cut_splits, index_rewards, provenance, read_like
from gnnrl_lightning.data.image_files import ImageFiles
from gnnrl_lightning.data.images import ImageSet
from gnnrl_lightning.data.loading import Batch, SplitDataset, loader, shuffled

_DECODED_AT_ONCE = 256


class ImageDataModule(LightningDataModule, ABC):
    """Labelled images in three splits that share no image: `train`, `reward` and `test`.

    The reward split, which is all that a search sees of the data, is cut from the training images, or with
    `reward_split=held_out` from the test images, by a fixed stratified permutation; the run's `seed` only drives
    shuffling and augmentation. Call `check()` first, then, unless a Lightning trainer does, `prepare_data()` and
    `setup()`.

    Args:
        name: what reports call the data.
        num_classes: number of classes, compared with what is found.
        reward_images: size of the reward split; null takes 5,000 or half of the training images if that is fewer. If it
            is not cut from the training images: its size at most.
        batch_size: images of a training batch (per device).
        eval_batch_size: images of a batch of the reward and test splits (per device).
        flip: whether training images are mirrored at random.
        epochs: for how many epochs a network without weights is trained on this data; read by the caller.
        preprocessing: what the network expects of its images.
        seed: of shuffling and augmentation.
        reward_split: where the reward split is from: `train`, the training images; `held_out`, a half of the test
            images; or the path of images for it alone, in class folders of the same classes.
    """

    labelled = True
    """Whether the images have labels of their own; else they are 0 until `label` sets them."""

    def __init__(
        self,
        *,
        name: str,
        num_classes: int,
        reward_images: int | None,
        batch_size: int,
        eval_batch_size: int,
        flip: bool,
        epochs: int,
        preprocessing: Preprocessing,
        seed: int,
        reward_split: str = TRAIN,
    ) -> None:
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.reward_images = reward_images
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.flip = flip
        self.epochs = epochs
        self.preprocessing = preprocessing
        self.seed = seed
        self.reward_split = reward_split
        self.loader_workers = 0  # images in memory come faster without
        self.splits: dict[str, ImageSet] = {}
        self._generator: torch.Generator | None = None
        self._resumed: Tensor | None = None
        self._apart: ImageFiles | None = None

    @abstractmethod
    def load(self) -> tuple[ImageSet, ImageSet]:
        """The training images, of which the reward split is still a part, and the test images."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the squares that the network is fed; known after `setup()`."""
        assert self.splits, "image_size is known after setup()"
        return self.splits["test"].side

    @property
    def provenance(self) -> str:
        """Which images rewards and accuracies are from, in a sentence; empty with `reward_split=train`."""
        return provenance(self.reward_split, self._apart, self.splits)

    def check(self) -> None:
        """Find what can be known to be wrong before any download, decoding or training.

        Raises:
            UserError: a setting is out of its range or does not agree with the images.
        """
        least = {"num_classes": 2, "batch_size": 2, "eval_batch_size": 1, "epochs": 1}
        for key, value in least.items():
            require_whole(f"data.{key}", getattr(self, key), value)
        if self.reward_images is not None:
            require_whole("data.reward_images", self.reward_images, 1)
        if not isinstance(self.flip, bool):
            raise UserError(f"data.flip={self.flip} is neither true nor false; use data.flip=true or data.flip=false.")
        self._rewards_apart()

    def _rewards_apart(self) -> ImageFiles | None:
        """The images that are for rewards alone, if there are any; listed once."""
        if self._apart is None and self.reward_split not in (TRAIN, HELD_OUT):
            self._apart = index_rewards(Path(self.reward_split).expanduser(), self.labelled, self.num_classes)
        return self._apart

    def _check_found(self, classes: int, training: int, test: int) -> None:
        """Compare the settings with the number of classes, training and test images that there are."""
        if classes != self.num_classes:
            raise UserError(
                f"data.num_classes={self.num_classes} but {self.name} has {classes} classes; "
                f"use data.num_classes={classes}."
            )
        if self.reward_split == HELD_OUT and self._apart is None and test < 2:
            raise UserError(
                f"reward_split=held_out takes half of the test images and {self.name} has only {test}; "
                "give more, or use reward_split=train."
            )
        if training < 4:
            raise UserError(
                f"{self.name} has only {training} images to train on and to cut the reward split from; "
                "give a folder with more with data.root=<path>."
            )
        if self.reward_split == TRAIN and self.reward_images is not None and self.reward_images > training - 2:
            raise UserError(
                f"data.reward_images={self.reward_images} are cut from the {training} training images of "
                f"{self.name} and must leave some; give at most data.reward_images={training - 2}."
            )

    def setup(self, stage: str | None = None) -> None:
        """Read the images (or only their names, where they are large) and cut the splits, once."""
        if self.splits:
            return
        self.check()
        images, test = self.load()
        files = self._rewards_apart()
        apart = None if files is None else read_like(files, test, self.preprocessing)
        self.splits = cut_splits(images, test, apart, self.reward_split, self.reward_images)

    def training_images(self, batch_size: int, device: torch.device, layout: torch.memory_format) -> Iterator[Tensor]:
        """Augmented training images without their labels, [N, 3, S, S] on a device, for as long as they are asked for.

        Args:
            batch_size: Images a batch; where there are fewer, all of them.
            device: Where they are wanted.
            layout: Their memory format.
        """
        batch_size = min(batch_size, len(self.splits["train"].labels))
        batches = self._shuffled(batch_size, torch.Generator().manual_seed(self.seed))
        while True:
            for images, _ in batches:
                yield images.to(device, memory_format=layout)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Augmented and shuffled training images; every call starts the same random sequence anew."""
        rank = self.trainer.global_rank if self.trainer is not None else 0
        self._generator = torch.Generator().manual_seed(self.seed + rank)
        if self._resumed is not None:
            self._generator.set_state(self._resumed)
            self._resumed = None
        return self._shuffled(self.batch_size, self._generator)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The reward split, as it is evaluated."""
        return self.evaluation_loader("reward")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test split, as it is evaluated."""
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: str) -> DataLoader[Batch]:
        """A split in its fixed order, as it is evaluated."""
        dataset = SplitDataset(self.splits[split], self.preprocessing)
        return loader(dataset, self.loader_workers, batch_size=self.eval_batch_size)

    def _shuffled(self, batch_size: int, generator: torch.Generator) -> DataLoader[Batch]:
        train = SplitDataset(self.splits["train"], self.preprocessing, self.flip, generator)
        return shuffled(train, batch_size, self.loader_workers)

    def tensors(self, split: str, images: int | None = None) -> tuple[HeldImages, Tensor]:
        """Hold a split in memory, without augmentation: images [N, 3, S, S] and labels int64 [N].

        `images` takes the first so many of the split's fixed order, in which any prefix is nearly class-balanced.

        Raises:
            UserError: the split has fewer images.
        """
        held = self.splits[split]
        available = len(held.labels)
        count = available if images is None else images
        if not 1 <= count <= available:
            more = " or raise data.reward_images" if split == "reward" else ""
            raise UserError(
                f"{count} images of the {split} split of {self.name} are asked for, which has {available}; "
                f"ask for 1 to {available}{more}."
            )
        pixels = torch.empty(count, 3, held.side, held.side, dtype=torch.uint8)
        for start in range(0, count, _DECODED_AT_ONCE):
            rows = range(start, min(start + _DECODED_AT_ONCE, count))
            pixels[rows.start : rows.stop] = held.evaluation(rows)
        return HeldImages(pixels, self.preprocessing), held.labels[:count].clone()

    def state_dict(self) -> dict[str, Any]:
        """Where the random sequence of training stands, so that a resumed run goes on with it."""
        return {} if self._generator is None else {"generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next `train_dataloader()` go on where the checkpoint was written."""
        self._resumed = state_dict.get("generator")


def root_path(root: object) -> Path:
    """The folder of `data.root`, with ~ written out.

    Raises:
        UserError: it is no path, but null or a number.
    """
    if not isinstance(root, str | Path):
        raise UserError(f"data.root={root} is not a path; give a folder, e.g. data.root=./images.")
    return Path(root).expanduser()
