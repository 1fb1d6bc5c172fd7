import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gnnrl_lightning.data import IMAGENET, FolderDataModule, image_files
from gnnrl_lightning.data.image_files import index_files
from gnnrl_lightning.data.module import root_path

SHARED = Path(__file__).parents[3] / "shared" / "data"
shared_only = pytest.mark.skipif(not SHARED.is_dir(), reason="the real images are not beside the project")


def folder(root: Path, num_classes: int = 2, **changes: Any) -> FolderDataModule:
    settings: dict[str, Any] = dict(
        name="folder", size=None, resize=None, test_fraction=0.5, reward_images=None, batch_size=4, eval_batch_size=8,
        num_workers=0, flip=True, epochs=1, preprocessing=IMAGENET, seed=0,
    )  # fmt: skip
    return FolderDataModule(root=str(root), num_classes=num_classes, **{**settings, **changes})


def ready(root: Path, num_classes: int = 2, **changes: Any) -> FolderDataModule:
    data = folder(root, num_classes, **changes)
    data.check()
    data.prepare_data()
    data.setup()
    return data


def make_images(
    root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 8, side: int = 16, suffix: str = "png"
) -> Path:
    """Class folders of one-coloured images: red is the class, green the number."""
    for red, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for green in range(each):
            colour = (40 * red, 20 * green, 100)
            options = {"lossless": True} if suffix == "webp" else {}
            Image.new("RGB", (side, side), colour).save(root / name / f"{green}.{suffix}", **options)
    return root


def pack(source: Path, target: Path) -> Path:
    with tarfile.open(target, "w:gz" if target.name.endswith(("gz", "tgz")) else "w") as tar:
        for path in sorted(source.iterdir()):
            tar.add(path, path.name)
    return target


def colours(data: FolderDataModule, split: str) -> list[tuple[int, int]]:
    images, labels = data.tensors(split)
    pixels = images.pixels.float().mean((2, 3))
    assert ((pixels[:, 0] / 40).round() == labels).all()
    return list(zip(labels.tolist(), (pixels[:, 1] / 20).round().int().tolist(), strict=True))


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz", "tgz"])
@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_in_folders_or_tars(tmp_path, form: str, test_name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name, each in (("train", 8), (test_name, 3)):
        images = make_images(tmp_path / name, each=each)
        if form == "folder":
            images.rename(root / name)
        else:
            pack(images, root / f"{name}.{form}")
    data = ready(root, reward_images=6)
    assert sorted(colours(data, "train") + colours(data, "reward")) == [(c, n) for c in (0, 1) for n in range(8)]
    assert sorted(colours(data, "test")) == [(c, n) for c in (0, 1) for n in range(3)]
    assert [label for label, _ in colours(data, "reward")].count(0) == 3
    assert data.image_size == 16


@pytest.mark.parametrize("suffix", ["png", "jpeg", "JPG", "webp", "bmp"])
def test_every_format(tmp_path, suffix: str) -> None:
    data = ready(make_images(tmp_path / "root", suffix=suffix))
    assert len(colours(data, "train") + colours(data, "reward") + colours(data, "test")) == 16


@pytest.mark.parametrize("where", ["val", "train", "itself", "tar itself", "val.tar"])
def test_an_only_set_is_cut_in_three(tmp_path, where: str) -> None:
    images = make_images(tmp_path / "images", each=10)
    root = tmp_path / "root"
    root.mkdir()
    if where == "itself":
        root = images
    elif where == "tar itself":
        root = pack(images, tmp_path / "all.tar")
    elif where == "val.tar":
        pack(images, root / "val.tar")
    else:
        images.rename(root / where)
    data = ready(root)
    held = {split: colours(data, split) for split in ("train", "reward", "test")}
    assert {split: len(images) for split, images in held.items()} == {"train": 5, "reward": 5, "test": 10}
    assert sorted(image for images in held.values() for image in images) == [(c, n) for c in (0, 1) for n in range(10)]
    assert [label for label, _ in held["test"]].count(0) == 5


def test_folder_and_tar_give_the_same_splits(tmp_path) -> None:
    images = make_images(tmp_path / "images", each=10)
    from_folder, from_tar = ready(images), ready(pack(images, tmp_path / "all.tar.gz"), seed=7)
    for split in ("train", "reward", "test"):
        assert colours(from_folder, split) == colours(from_tar, split)


def test_one_image_per_class(tmp_path) -> None:
    data = ready(
        make_images(tmp_path / "root", tuple(f"c{k}" for k in range(6)), each=1, side=100), 6, test_fraction=0.3
    )
    labels = [label for split in ("train", "reward", "test") for label, _ in colours(data, split)]
    assert sorted(labels) == list(range(6))


def test_a_class_called_train_is_a_class(tmp_path) -> None:
    data = ready(make_images(tmp_path / "root", ("car", "train"), each=6))
    assert len(colours(data, "test")) == 6


def test_a_test_folder_without_classes_gives_way_to_val(tmp_path) -> None:
    make_images(tmp_path / "train", each=6)
    make_images(tmp_path / "val", each=2)
    (tmp_path / "test").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "test" / "0.png")
    assert len(colours(ready(tmp_path), "test")) == 4


def test_large_images_go_through_the_preprocessing_of_the_weights(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(noise).save(tmp_path / name / f"{number}.png")
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    expected = Compose([Resize(256), CenterCrop(224), ToTensor(), Normalize(IMAGENET.mean, IMAGENET.std)])
    data = ready(tmp_path)
    images, _ = data.tensors("test")
    assert torch.allclose(images[0], expected(Image.fromarray(noise)), atol=1e-5)
    assert data.image_size == 224
    assert next(iter(data.train_dataloader()))[0].shape == (2, 3, 224, 224)
    scaled = ready(tmp_path, size=112)
    expected.transforms[:2] = [Resize(128), CenterCrop(112)]
    assert torch.allclose(scaled.tensors("test")[0][0], expected(Image.fromarray(noise)), atol=1e-5)
    unscaled = ready(tmp_path, resize=300)
    expected.transforms[:2] = [CenterCrop(224)]
    assert torch.allclose(unscaled.tensors("test")[0][0], expected(Image.fromarray(noise)), atol=1e-5)


def test_mixed_small_sizes_are_resized(tmp_path) -> None:
    make_images(tmp_path, side=16)
    Image.new("RGB", (20, 16), (0, 0, 100)).save(tmp_path / "cat" / "0.png")
    assert ready(tmp_path).image_size == 224
    assert ready(tmp_path, size=24).tensors("test")[0].pixels.shape == (8, 3, 24, 24)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_processes_draw_their_own_streams(tmp_path, start: str) -> None:
    make_images(tmp_path, each=12, side=80)
    gradient = np.broadcast_to(np.arange(80, dtype=np.uint8)[:, None, None] * 3, (80, 80, 3))
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(np.ascontiguousarray(gradient)).save(path)

    def epochs(seed: int) -> list[torch.Tensor]:
        data = ready(tmp_path, num_workers=2, seed=seed, size=66, batch_size=2, reward_images=2)
        loader = data.train_dataloader()
        assert loader.num_workers == 2
        loader.multiprocessing_context = start
        return [torch.stack([images.sum() for images, _ in loader]) for _ in range(2)]

    first, again, other = epochs(0), epochs(0), epochs(1)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])
    assert len(set(first[0].tolist())) == len(first[0])  # the two processes do not repeat each other


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **header: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in header.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_hostile_tar_is_harmless(tmp_path, suffix: str) -> None:
    source = make_images(tmp_path / "images", each=4)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (16, 16), (1, 2, 3)).save(secret)
    root = tmp_path / "work" / f"all.{suffix}"
    root.parent.mkdir()
    picture = (source / "cat" / "0.png").read_bytes()
    with tarfile.open(root, "w:gz" if suffix == "tar.gz" else "w") as tar:
        for path in sorted(source.rglob("*.png")):
            tar.add(path, "./" + str(path.relative_to(source)))
        add(tar, "../evil.png", picture)
        add(tar, "/evil.png", picture)
        add(tar, "../../cat/evil.png", picture)
        add(tar, "cat/link.png", type=tarfile.SYMTYPE, linkname=str(secret))
        add(tar, "cat/hard.png", type=tarfile.LNKTYPE, linkname="../secret.png")
        add(tar, "cat/device.png", type=tarfile.CHRTYPE)
        add(tar, "cat/pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "cat/._0.png", b"resource fork")
        add(tar, "cat/code.pkl", b"cos\nsystem\n(S'touch evil'\ntR.")
    before = sorted(tmp_path.rglob("*"))
    assert index_files(root).names.tolist() == [f"{c}/{n}.png" for c in ("cat", "dog") for n in range(4)]
    ready(root)
    assert sorted(tmp_path.rglob("*")) == before


def test_names_are_those_of_the_folder_whatever_the_order_in_the_tar(tmp_path) -> None:
    images = make_images(tmp_path / "images", ("a", "a b", "é"), each=3)
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in sorted(images.rglob("*.png"), reverse=True):
            tar.add(path, str(path.relative_to(images)))
    from_folder, from_tar = index_files(images), index_files(tmp_path / "all.tar")
    assert from_folder.names.tolist() == from_tar.names.tolist()
    assert from_folder.classes == from_tar.classes == ("a", "a b", "é")
    for index in range(9):
        assert from_folder.open(index).getpixel((0, 0)) == from_tar.open(index).getpixel((0, 0))


def test_classes_must_agree(tmp_path) -> None:
    make_images(tmp_path / "train", ("cat", "dog"))
    make_images(tmp_path / "test", ("cat", "cow"))
    with pytest.raises(ValueError, match=r"same classes but 'cow'"):
        folder(tmp_path).check()


def test_the_number_of_classes_must_agree(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"data\.num_classes=3 .* use data\.num_classes=2"):
        folder(make_images(tmp_path / "root"), num_classes=3).check()


def test_a_missing_root_is_named() -> None:
    with pytest.raises(ValueError, match=r"data\.root=/nowhere does not exist; .* data=digits\."):
        folder(Path("/nowhere")).check()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": 0}, "data.size=0"),
        ({"resize": 200}, "data.resize=200 .* give 224 or more"),
        ({"test_fraction": 1.0}, "data.test_fraction=1.0"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"size": "abc"}, "data.size=abc must be a whole number"),
        ({"resize": "abc"}, "data.resize=abc must be a whole number"),
        ({"test_fraction": "abc"}, "data.test_fraction=abc must be a number above 0 and below 1"),
        ({"num_workers": "abc"}, "data.num_workers=abc must be a whole number"),
        ({"flip": "abc"}, "data.flip=abc is neither true nor false"),
        ({"reward_images": 7}, "at most data.reward_images=6"),
    ],
)
def test_wrong_settings_are_named(tmp_path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        folder(make_images(tmp_path / "root"), **changes).check()


@pytest.mark.parametrize("root", [None, 5])
def test_a_root_that_is_no_path_is_named(root: Any) -> None:
    with pytest.raises(ValueError, match=rf"data\.root={root} is not a path"):
        root_path(root)


def test_roots_without_images_are_named(tmp_path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"has no <class>/<image> files .* or add data\.labels=false for images"):
        folder(tmp_path).check()
    with pytest.raises(ValueError, match=r"neither a folder nor a \.tar"):
        folder(tmp_path / "notes.txt").check()


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_truncated_tar_is_named(tmp_path, suffix: str) -> None:
    whole = pack(make_images(tmp_path / "images", side=60), tmp_path / f"all.{suffix}")
    os.truncate(whole, whole.stat().st_size // 2 + 100)
    with pytest.raises(ValueError, match=r"is damaged or not a tar"):
        folder(whole).check()


def test_a_damaged_image_is_named(tmp_path) -> None:
    make_images(tmp_path)
    (tmp_path / "dog" / "3.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"dog/3\.png in .* cannot be read as an image"):
        ready(tmp_path)


@shared_only
def test_real_cifar_counts() -> None:
    data = ready(SHARED / "cifar10", 10, reward_images=5000)
    assert {split: len(images.labels) for split, images in data.splits.items()} == {
        "train": 49_059 - 5000, "reward": 5000, "test": 9806,
    }  # fmt: skip
    counts = data.tensors("reward", 1000)[1].bincount()
    assert counts.min() > 75 and counts.max() < 105  # 812 of the 1,000 ships, the other classes nearly whole
    assert data.image_size == 32


@shared_only
def test_real_imagenet_decodes_only_what_is_used() -> None:
    data = ready(SHARED / "imagenet_sample", 1000)
    sizes = {split: len(images.labels) for split, images in data.splits.items()}
    assert sizes == {"train": 250, "reward": 250, "test": 500}
    labels = torch.cat([images.labels for images in data.splits.values()])
    assert labels.sort().values.tolist() == list(range(1000))
    images, held = data.tensors("reward", 4)
    assert images.pixels.shape == (4, 3, 224, 224) and images[:].std() > 0.3
    assert torch.equal(held, data.splits["reward"].labels[:4])


def png(array: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, "PNG", **options)
    return buffer.getvalue()


GREY = np.array([[0, 128, 255]], dtype=np.uint8)
COLOURS = np.array([[[255, 0, 0], [0, 255, 0]]], dtype=np.uint8)
KINDS: dict[str, tuple[bytes, list[list[int]]]] = {
    "16 bits": (png(np.array([[0, 32768, 65535]], dtype=np.uint16)), [[0] * 3, [128] * 3, [255] * 3]),
    "grey": (png(GREY), [[0] * 3, [128] * 3, [255] * 3]),
    "one bit": (png(np.array([[0, 255]], dtype=np.uint8), "1"), [[0] * 3, [255] * 3]),
    "grey and alpha": (png(GREY, "LA"), [[0] * 3, [128] * 3, [255] * 3]),
    "alpha": (png(np.dstack([COLOURS, [[255, 0]]]).astype(np.uint8)), [[255, 0, 0], [0, 255, 0]]),
    "palette": (png(COLOURS, "P"), [[255, 0, 0], [0, 255, 0]]),
    "palette with transparency": (png(COLOURS, "P", transparency=0), [[255, 0, 0], [0, 255, 0]]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_has_its_colours(kind: str, tmp_path: Path) -> None:
    data, wanted = KINDS[kind]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(data)
    assert np.asarray(index_files(tmp_path).open(0))[0].tolist() == wanted


def test_cmyk_and_numbers_without_a_range(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a" / "x.jpg", quality=100)
    found = np.asarray(index_files(tmp_path).open(0)).astype(int)
    assert abs(found - [255, 0, 0]).max() <= 4
    with pytest.raises(SyntaxError, match="no range"):
        image_files._rgb(Image.new("F", (2, 2)))
