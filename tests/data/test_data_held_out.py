"""Rewards on images that the network was not trained on, and images without labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_data_digits import ready as digits
from test_data_digits import rows
from test_data_folder import colours, folder, make_images, pack, ready

from gnnrl_lightning.data import ImageDataModule

SPLITS = ("train", "reward", "test")


def sizes(data: ImageDataModule) -> dict[str, int]:
    return {name: len(data.splits[name].labels) for name in SPLITS}


def both_sets(root: Path, **each: int) -> Path:
    """A folder of sets, each with so many images a class; their colours tell them apart by nothing but the number."""
    for name, count in each.items():
        make_images(root / name, each=count)
    return root


def test_a_half_of_the_test_images_is_for_rewards() -> None:
    usual, data = digits(), digits(reward_split="held_out")
    assert sizes(data) == {"train": 1437, "reward": 180, "test": 180}
    of = {split: rows(data.tensors(split)[0].pixels) for split in SPLITS}
    assert not of["reward"] & of["test"] and not of["train"] & (of["reward"] | of["test"])
    # What was held out is the test split of ever, and what is trained on is all the rest.
    assert of["reward"] | of["test"] == rows(usual.tensors("test")[0].pixels)
    assert of["train"] == rows(torch.cat([usual.tensors(split)[0].pixels for split in ("train", "reward")]))
    counts = data.tensors("test")[1].bincount() - data.tensors("reward")[1].bincount()
    assert counts.abs().max() <= 2, "stratified"


def test_the_halves_are_the_same_for_every_seed() -> None:
    first, second = (digits(reward_split="held_out", seed=seed) for seed in (0, 1))
    for split in SPLITS:
        assert torch.equal(first.tensors(split)[0].pixels, second.tensors(split)[0].pixels)


def test_reward_images_says_how_many_of_the_half_at_most() -> None:
    data = digits(reward_split="held_out", reward_images=50)
    assert sizes(data) == {"train": 1437, "reward": 50, "test": 180}
    whole = digits(reward_split="held_out")
    assert torch.equal(data.tensors("test")[0].pixels, whole.tensors("test")[0].pixels)
    assert torch.equal(data.tensors("reward")[0].pixels, whole.tensors("reward", 50)[0].pixels)
    assert digits(reward_split="held_out", reward_images=1436).splits, "no training image is cut off"


def test_it_is_said_which_images_are_which(tmp_path: Path) -> None:
    assert digits().provenance == ""
    assert digits(reward_split="held_out", reward_images=50).provenance == (
        "Rewards: 50 images of one half of the test images (a fixed, stratified cut); "
        "accuracies: the other half, 180 images."
    )
    root = both_sets(tmp_path / "root", train=4, val=3, test=2)
    assert (
        ready(root, reward_split="held_out").provenance == "Rewards: 6 images of val/; accuracies: the 4 test images."
    )
    apart = str(make_images(tmp_path / "mine", each=5))
    assert (
        ready(root, reward_split=apart).provenance == f"Rewards: 10 images of {apart}; accuracies: the 4 test images."
    )


def test_val_beside_test_is_for_rewards(tmp_path: Path) -> None:
    root = both_sets(tmp_path, train=8, val=3, test=5)
    data = ready(root, reward_split="held_out")
    assert sizes(data) == {"train": 16, "reward": 6, "test": 10}
    assert sorted(colours(data, "reward")) == [(c, n) for c in (0, 1) for n in range(3)]
    assert sizes(ready(root)) == {"train": 8, "reward": 8, "test": 10}, "else it is not read"


def test_val_alone_is_halved(tmp_path: Path) -> None:
    data = ready(both_sets(tmp_path, train=8, val=6), reward_split="held_out")
    assert sizes(data) == {"train": 16, "reward": 6, "test": 6}
    assert sorted(colours(data, "reward") + colours(data, "test")) == [(c, n) for c in (0, 1) for n in range(6)]
    assert [label for label, _ in colours(data, "reward")].count(0) == 3


@pytest.mark.parametrize("where", ["itself", "val"])
def test_of_an_only_set_the_test_part_is_halved(tmp_path: Path, where: str) -> None:
    make_images(tmp_path if where == "itself" else tmp_path / where, each=8)
    data = ready(tmp_path, reward_split="held_out")
    assert sizes(data) == {"train": 8, "reward": 4, "test": 4}
    assert len({image for split in SPLITS for image in colours(data, split)}) == 16


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_path_of_images_is_the_reward_split(tmp_path: Path, form: str) -> None:
    root, apart = both_sets(tmp_path / "root", train=8, test=5), make_images(tmp_path / "mine", each=3)
    path = apart if form == "folder" else pack(apart, tmp_path / "mine.tar")
    data = ready(root, reward_split=str(path))
    assert sizes(data) == {"train": 16, "reward": 6, "test": 10}
    assert sorted(colours(data, "reward")) == [(c, n) for c in (0, 1) for n in range(3)]


@pytest.mark.parametrize(("side", "size"), [(16, None), (100, None), (16, 80)])
def test_images_of_a_path_are_prepared_as_the_others_are(tmp_path: Path, side: int, size: int | None) -> None:
    root = make_images(tmp_path / "root", side=side)
    apart = make_images(tmp_path / "mine", side=120)
    data = ready(root, reward_split=str(apart), size=size)
    assert data.tensors("reward")[0].pixels.shape[2:] == (data.image_size, data.image_size)
    assert len(colours(data, "reward")) == 16


@pytest.mark.parametrize("size", [32, 128])
def test_every_data_module_takes_a_path(tmp_path: Path, size: int) -> None:
    apart = make_images(tmp_path, tuple("0123456789"), each=2, side=20)
    data = digits(reward_split=str(apart), size=size)
    assert sizes(data) == {"train": 1437, "reward": 20, "test": 360}
    assert data.tensors("reward")[0].pixels.shape == (20, 3, size, size)


def test_what_cannot_be_the_reward_split_is_named(tmp_path: Path) -> None:
    root = both_sets(tmp_path / "root", train=4, test=4)

    def refused(reward_split: str, **changes: Any) -> str:
        with pytest.raises(ValueError) as raised:
            folder(root, reward_split=reward_split, **changes).check()
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert refused("held-out").startswith("reward_split=held-out is neither train nor held_out nor a folder or a .tar")
    three = make_images(tmp_path / "three", ("cat", "cow", "dog"))
    assert f"reward_split={three} has 3 classes but data.num_classes=2" in refused(str(three))
    other = make_images(tmp_path / "other", ("cat", "cow"))
    assert "must have the same classes but 'cow'" in refused(str(other))
    assert "use reward_split=train or reward_split=held_out" in refused(str(root / "train" / ".." / "test"))
    assert "with reward_split=<path>" in refused(str(root / "train" / "cat"))
    few = make_images(tmp_path / "few", each=6)
    with pytest.raises(ValueError, match="reward_split=held_out takes half of the test images and folder has only 1;"):
        folder(few, test_fraction=0.1, reward_split="held_out").check()


def scattered(root: Path, count: int) -> Path:
    """Images at any depth, in folders that are no classes."""
    make_images(root / "a" / "b", ("deep",), each=count - 2)
    make_images(root, ("shallow",), each=1)
    (root / "shallow" / "0.png").rename(root / "top.png")
    (root / "shallow" / ".hidden").mkdir()
    (root / "top.png").with_name("._top.png").write_bytes(b"no image")
    (root / "shallow" / ".hidden" / "x.png").write_bytes(b"no image")
    make_images(root / "c", ("x",), each=1)
    return root


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz"])
@pytest.mark.parametrize("reward_split", ["train", "held_out"])
def test_images_without_labels_lie_anywhere(tmp_path: Path, form: str, reward_split: str) -> None:
    root = scattered(tmp_path / "root", 12)
    if form != "folder":
        root = pack(root, tmp_path / f"all.{form}")
    data = ready(root, 7, labels=False, reward_split=reward_split)
    assert sizes(data) == {"train": 3, "reward": 3, "test": 6} if reward_split == "train" else {
        "train": 6, "reward": 3, "test": 3,
    }  # fmt: skip
    assert not data.labelled and data.num_classes == 7
    assert all(not images.labels.any() for images in data.splits.values())


def test_sets_without_labels(tmp_path: Path) -> None:
    for name, count in (("train", 8), ("test", 5)):
        make_images(tmp_path, (name,), each=count)
    data = ready(tmp_path, labels=False)
    assert sizes(data) == {"train": 4, "reward": 4, "test": 5}
    with pytest.raises(ValueError, match=r"has no image files .* with data\.root=<path>"):
        (tmp_path / "nothing").mkdir()
        folder(tmp_path / "nothing", labels=False).check()
    with pytest.raises(ValueError, match=r"data\.labels=maybe is neither true nor false"):
        folder(tmp_path, labels="maybe").check()
