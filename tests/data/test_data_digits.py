from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch.utils.data import RandomSampler, SequentialSampler

from gnnrl_lightning.data import IMAGENET, DigitsDataModule


def digits(**changes: Any) -> DigitsDataModule:
    settings: dict[str, Any] = dict(
        name="digits", num_classes=10, size=32, test_images=360, reward_images=300, batch_size=128,
        eval_batch_size=500, epochs=12, preprocessing=IMAGENET, seed=0,
    )  # fmt: skip
    return DigitsDataModule(**{**settings, **changes})


def ready(**changes: Any) -> DigitsDataModule:
    data = digits(**changes)
    data.check()
    data.prepare_data()
    data.setup("fit")
    return data


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_the_splits_are_the_whole_set_and_share_no_image() -> None:
    data = ready()
    held = {split: data.tensors(split) for split in ("train", "reward", "test")}
    assert {split: len(labels) for split, (_, labels) in held.items()} == {"train": 1137, "reward": 300, "test": 360}
    distinct = len(rows(torch.from_numpy(load_digits().images)))
    assert len(set().union(*(rows(images.pixels) for images, _ in held.values()))) == distinct
    assert sum(len(rows(images.pixels)) for images, _ in held.values()) == distinct
    assert (data.num_classes, data.image_size, data.name, data.epochs) == (10, 32, "digits", 12)


def test_the_splits_and_their_prefixes_are_stratified() -> None:
    data = ready()
    whole = np.bincount(load_digits().target) / 1797
    for split, count in (("train", 1137), ("reward", 300), ("test", 360), ("reward", 100), ("train", 200)):
        _, labels = data.tensors(split, count)
        assert np.abs(labels.bincount(minlength=10).numpy() - whole * count).max() <= 2


def test_the_split_does_not_depend_on_the_seed() -> None:
    first, second = ready(seed=0), ready(seed=1)
    for split in ("train", "reward", "test"):
        (images, labels), (others, same) = first.tensors(split), second.tensors(split)
        assert torch.equal(images.pixels, others.pixels) and torch.equal(labels, same)


def epoch(data: DigitsDataModule) -> torch.Tensor:
    return torch.cat([images for images, _ in data.train_dataloader()])


def test_the_seed_drives_shuffling_and_augmentation() -> None:
    assert torch.equal(epoch(ready(seed=3)), epoch(ready(seed=3)))
    assert not torch.equal(epoch(ready(seed=3)), epoch(ready(seed=4)))


def test_every_training_starts_the_same_sequence_and_every_epoch_is_another() -> None:
    data = ready()
    assert torch.equal(epoch(data), epoch(data))
    loader = data.train_dataloader()
    first, second = (torch.cat([images for images, _ in loader]) for _ in range(2))
    assert rows(first) != rows(second)


def test_batches_are_normalised_and_labelled() -> None:
    data = ready()
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (300, 3, 32, 32) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.equal(labels, data.tensors("reward")[1])
    mean, std = torch.tensor(IMAGENET.mean).view(3, 1, 1), torch.tensor(IMAGENET.std).view(3, 1, 1)
    pixels = images * std + mean
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
    assert torch.allclose(pixels[:, 0], pixels[:, 2], atol=1e-5)
    assert next(iter(data.train_dataloader()))[0].shape == (128, 3, 32, 32)


def test_held_images_are_the_loaders_at_a_quarter_of_the_memory() -> None:
    data = ready(eval_batch_size=300)
    (loaded, _), (held, _) = next(iter(data.val_dataloader())), data.tensors("reward")
    assert len(held) == 300 and 4 * held.pixels.nbytes == loaded.nbytes
    assert torch.equal(held[:], loaded)
    assert torch.equal(held[7:20], loaded[7:20])
    order = torch.tensor([5, 299, 0])
    assert torch.equal(held[order], loaded[order])
    moved = held.to(torch.device("cpu"), memory_format=torch.channels_last)
    assert torch.equal(moved[:], loaded) and moved[:].is_contiguous(memory_format=torch.channels_last)


def test_digits_are_never_mirrored() -> None:
    assert digits().flip is False


def test_loaders_leave_room_for_a_distributed_sampler() -> None:
    data = ready()
    assert type(data.train_dataloader().sampler) is RandomSampler
    assert type(data.val_dataloader().sampler) is SequentialSampler
    assert type(data.test_dataloader().sampler) is SequentialSampler


def test_setup_is_idempotent() -> None:
    data = ready()
    splits = data.splits
    data.setup("test")
    assert data.splits is splits


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_classes": 11}, "data.num_classes=11"),
        ({"batch_size": 1}, "data.batch_size=1"),
        ({"eval_batch_size": 0}, "data.eval_batch_size=0"),
        ({"epochs": 0}, "data.epochs=0"),
        ({"reward_images": 0}, "data.reward_images=0"),
        ({"reward_images": 1437}, "at most data.reward_images=1435"),
        ({"test_images": 0}, "data.test_images=0"),
        ({"size": 4}, "data.size=4"),
        ({"test_images": 899}, "data.test_images=899 is out of range"),
        *(
            ({key: "abc"}, f"data.{key}=abc must be a whole number of at least")
            for key in (
                *("num_classes", "batch_size", "eval_batch_size", "epochs", "reward_images"),
                *("size", "test_images"),
            )
        ),
        ({"batch_size": 12.5}, "data.batch_size=12.5 must be a whole number"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        digits(**changes).check()


def test_more_images_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"301 images of the reward split .* raise data\.reward_images"):
        ready().tensors("reward", 301)


class Recorder(LightningModule):
    """Notes what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.shown: list[float] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        self.shown.append(batch[0].double().sum().item())
        return self.weight * batch[0].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: DigitsDataModule, epochs: int, tmp_path: Any, ckpt_path: str | None = None) -> list[float]:
    module = Recorder()
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return module.shown


def test_a_resumed_training_sees_what_the_uninterrupted_one_sees(tmp_path) -> None:
    whole = fit(digits(), 4, tmp_path)
    first = fit(digits(), 2, tmp_path)
    rest = fit(digits(), 4, tmp_path, ckpt_path=str(tmp_path / "last.ckpt"))
    assert len(rest) == len(whole) // 2
    assert first + rest == whole


def test_training_images_never_end_and_are_the_same_again() -> None:
    data = ready()
    first, second = (data.training_images(500, torch.device("cpu"), torch.channels_last) for _ in range(2))
    batches = [next(first) for _ in range(4)]  # an epoch has two
    assert all(
        batch.shape == (500, 3, 32, 32) and batch.is_contiguous(memory_format=torch.channels_last) for batch in batches
    )
    assert not torch.equal(batches[0], batches[2])
    assert all(torch.equal(batch, next(second)) for batch in batches)
    assert len(next(data.training_images(5000, torch.device("cpu"), torch.contiguous_format))) == 1137
