import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_lightning.core.samples import IMAGENET
from gnnrl_lightning.models.resnet_cifar import PaddedShortcut, resnet_cifar
from gnnrl_lightning.models.weights import load_weights

SHARED = Path(__file__).resolve().parents[3] / "shared"
CHECKPOINTS = {20: "resnet20-12fca82f.th", 44: "resnet44-014dd654.th", 56: "resnet56-4bfd9763.th"}
# He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million.
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}


def macs(model: nn.Module, image_size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("depth", "parameters"), PARAMETERS.items())
def test_has_the_papers_size_and_gives_scores(depth: int, parameters: int) -> None:
    model = resnet_cifar(depth, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_macs_are_those_of_the_papers() -> None:
    stem, classifier = 3 * 16 * 9 * 32**2, 64 * 10
    stage1 = 18 * 16 * 16 * 9 * 32**2
    stage2 = (16 * 32 + 17 * 32 * 32) * 9 * 16**2
    stage3 = (32 * 64 + 17 * 64 * 64) * 9 * 8**2
    assert macs(resnet_cifar(56, 10), 32) == stem + stage1 + stage2 + stage3 + classifier == 125_485_696


def test_shortcut_subsamples_pixels_and_pads_channels_on_both_sides() -> None:
    x = torch.randn(2, 16, 6, 6)
    out = PaddedShortcut(16, 32, stride=2)(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out.shape == (2, 32, 3, 3)
    assert not out[:, :8].any() and not out[:, 24:].any()


def test_shortcuts_have_no_parameters() -> None:
    assert not [name for name in resnet_cifar(20, 10).state_dict() if "shortcut" in name]


def test_any_depth_of_6n_plus_2_only() -> None:
    with pytest.raises(AssertionError, match="not 21"):
        resnet_cifar(21, 10)


@pytest.mark.parametrize("depth", CHECKPOINTS)
def test_published_checkpoint_loads(depth: int) -> None:
    path = SHARED / "weights/cifar10" / CHECKPOINTS[depth]
    if not path.exists():
        pytest.skip("needs ../shared")
    model = resnet_cifar(depth, 10)
    before = model.layer3[-1].conv2.weight.clone()
    load_weights(model, path)
    assert not torch.equal(model.layer3[-1].conv2.weight, before)
    assert not [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]


def test_published_resnet20_classifies_cifar10() -> None:
    archive = SHARED / "data/cifar10/test.tar.gz"
    if not archive.exists():
        pytest.skip("needs ../shared")
    images, labels = read_images(archive, per_class=50)
    model = resnet_cifar(20, 10)
    load_weights(model, SHARED / "weights/cifar10" / CHECKPOINTS[20])
    with torch.no_grad():
        scores = model.eval()(IMAGENET.normalise(images))
    # 91.67 % on all images; two standard errors of 500 images are 2.5 points.
    assert (scores.argmax(1) == labels).float().mean() > 0.89


def read_images(archive: Path, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
    found: dict[str, list[np.ndarray]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            folder = Path(member.name).parent.name
            if member.isfile() and len(found.setdefault(folder, [])) < per_class:
                content = tar.extractfile(member)
                assert content is not None
                found[folder].append(np.array(Image.open(io.BytesIO(content.read())).convert("RGB")))
    classes = sorted(found)
    pixels = np.stack([image for name in classes for image in found[name]])
    labels = [label for label, name in enumerate(classes) for _ in found[name]]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(labels)
