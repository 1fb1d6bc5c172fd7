import numpy as np
import pytest
import torch

from gnnrl_lightning.core.samples import IMAGENET
from gnnrl_lightning.data.image_files import index_files
from gnnrl_lightning.data.images import FileImages, MemoryImages, cut, stratified_order


def numbered(labels: np.ndarray) -> MemoryImages:
    """Images that carry their own number in their first two pixels."""
    number = torch.arange(len(labels))
    pixels = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = number % 256, number // 256
    return MemoryImages(pixels, torch.from_numpy(labels))


def numbers(images: MemoryImages) -> list[int]:
    return (images.pixels[:, 0, 0, 0].int() + 256 * images.pixels[:, 0, 0, 1].int()).tolist()


@pytest.mark.parametrize("counts", [[100] * 10, [50, 7, 300, 1], [1] * 40])
def test_every_prefix_holds_each_class_in_its_share(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = stratified_order(labels)
    assert sorted(order) == list(range(len(labels)))
    for length in range(len(labels) + 1):
        share = np.array(counts) * length / len(labels)
        held = np.bincount(labels[order[:length]], minlength=len(counts))
        # Each class is within one image of its stretches so far, and so the stretches within one image per class.
        assert (np.abs(held - share) <= 1 + np.array(counts) * len(counts) / len(labels)).all()


def test_equal_classes_are_balanced_to_a_few_images() -> None:
    labels = np.tile(np.arange(10), 500)
    order = stratified_order(labels)
    for length in (100, 1000, 2500):
        held = np.bincount(labels[order[:length]], minlength=10)
        assert held.max() - held.min() <= 2


def test_one_image_per_class_is_shuffled() -> None:
    order = stratified_order(np.arange(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


def test_cut_shares_nothing_and_loses_nothing() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 700)
    images = numbered(labels)
    first, rest = cut(images, 200)
    assert len(numbers(first)) == 200
    assert sorted(numbers(first) + numbers(rest)) == list(range(700))
    assert first.labels.tolist() == [labels[i] for i in numbers(first)]


def test_the_order_ignores_the_global_seeds() -> None:
    labels = np.tile(np.arange(3), 50)
    torch.manual_seed(1)
    np.random.seed(1)
    first = stratified_order(labels)
    torch.manual_seed(2)
    np.random.seed(2)
    assert (first == stratified_order(labels)).all()


def test_augmentation_is_a_shift_of_the_padded_image_and_a_mirror() -> None:
    pixels = torch.randint(1, 256, (64, 3, 12, 12), generator=torch.Generator().manual_seed(0)).byte()
    images = MemoryImages(pixels, torch.zeros(64, dtype=torch.int64))
    padded = torch.nn.functional.pad(pixels, [4] * 4)
    seen = {False: 0, True: 0}
    for row, augmented in enumerate(images.augmented(range(64), True, torch.Generator().manual_seed(0))):
        crops = padded[row].unfold(1, 12, 1).unfold(2, 12, 1).permute(1, 2, 0, 3, 4).reshape(81, 3, 12, 12)
        plain = (crops == augmented).all(-1).all(-1).all(-1).any().item()
        mirrored = (crops == augmented.flip(2)).all(-1).all(-1).all(-1).any().item()
        assert plain != mirrored
        seen[mirrored] += 1
    assert min(seen.values()) > 16


def test_without_flip_nothing_is_mirrored() -> None:
    ramp = torch.arange(8, dtype=torch.uint8).mul(20).add(50).expand(100, 3, 8, 8).contiguous()
    images = MemoryImages(ramp, torch.zeros(100, dtype=torch.int64))
    augmented = images.augmented(range(100), False, torch.Generator().manual_seed(0)).int()
    rising = augmented[:, :, :, 1:] - augmented[:, :, :, :-1]
    inside = (augmented[:, :, :, 1:] > 0) & (augmented[:, :, :, :-1] > 0)
    assert (rising[inside] == 20).all()


def test_large_images_draw_from_the_owned_generator_only(tmp_path) -> None:
    from PIL import Image

    (tmp_path / "a").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a" / "0.png")
    images = FileImages(index_files(tmp_path), np.arange(1), IMAGENET)
    before = torch.get_rng_state()
    first, again, other = (images.augmented([0, 0], True, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert first.shape == (2, 3, 224, 224)
    generator = torch.Generator().manual_seed(1)
    images.augmented([0], False, generator)
    assert not torch.equal(first[:1], images.augmented([0], False, generator))
