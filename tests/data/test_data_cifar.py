import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from gnnrl_lightning.data import IMAGENET, CifarDataModule
from gnnrl_lightning.data import cifar as module


def cifar(root: Path, **changes: Any) -> CifarDataModule:
    settings: dict[str, Any] = dict(
        name="cifar10", num_classes=10, reward_images=5000, batch_size=128, eval_batch_size=500, flip=True,
        epochs=200, preprocessing=IMAGENET, seed=0,
    )  # fmt: skip
    return CifarDataModule(root=str(root), **{**settings, **changes})


@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError("File not found or corrupted.")])
def test_without_a_network_one_sentence_and_nothing_left(tmp_path, monkeypatch, error: Exception) -> None:
    def download(url: str, download_root: str, **_: Any) -> None:
        Path(download_root, "cifar-10-python.tar.gz").write_bytes(b"half")
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    data = cifar(tmp_path / "data" / "cifar10")
    data.check()
    with pytest.raises(ValueError, match=r"data\.root=.*cifar10 .*data=digits") as raised:
        data.prepare_data()
    assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.rglob("*")} == {"data", ".cifar10.lock"}


def make_published(folder: Path) -> None:
    """Write what torchvision expects, with 2,000 random images in place of each batch."""
    random = np.random.default_rng(0)
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        entry = {"data": random.integers(0, 256, (200, 3072)).astype(np.uint8), "labels": list(range(10)) * 20}
        (base / name).write_bytes(pickle.dumps(entry))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(k) for k in range(10)]}))


def test_downloaded_once_and_cut(tmp_path, monkeypatch) -> None:
    calls = []

    def download(url: str, download_root: str, **_: Any) -> None:
        calls.append(url)
        make_published(Path(download_root))

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: Path(path).exists())
    monkeypatch.setattr(module, "_TRAINING_IMAGES", 1000)
    for _ in range(2):
        data = cifar(tmp_path / "cifar10", reward_images=100)
        data.check()
        data.prepare_data()
        data.setup()
        assert {split: len(images.labels) for split, images in data.splits.items()} == {
            "train": 900, "reward": 100, "test": 200,
        }  # fmt: skip
        assert data.tensors("reward")[1].bincount().tolist() == [10] * 10
        assert data.image_size == 32
    assert len(calls) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"cifar10", ".cifar10.lock"}


def test_damaged_files_are_named(tmp_path) -> None:
    make_published(tmp_path)
    data = cifar(tmp_path)
    data.prepare_data()
    with pytest.raises(ValueError, match="cifar-10-batches-py is damaged"):
        data.setup()


def test_wrong_settings_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"data\.num_classes=11 is not a CIFAR"):
        cifar(tmp_path, num_classes=11).check()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data\.root=.* is not a folder"):
        cifar(tmp_path / "file").check()
    with pytest.raises(ValueError, match=r"data\.reward_images=50000"):
        cifar(tmp_path, reward_images=50_000).check()
