"""The code of docs/library.md runs, in fewer steps, on small stand-ins for what the reader has."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.ops import box_iou
from two_inputs import TwoInputs

import gnnrl_lightning as gl
from gnnrl_lightning.models.resnet_cifar import resnet_cifar

PAGE = (Path(__file__).parents[1] / "docs" / "library.md").read_text()
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks(heading: str) -> list[str]:
    """The code below a heading of the page."""
    _, _, below = PAGE.partition(f"\n{heading}\n")
    return CODE.findall(below.partition("\n## ")[0])


def quick(code: str) -> str:
    return code.replace("budget=0.5", "budget=0.5, finish={'steps': 4}").replace(
        'reward="kl")', 'reward="kl", episodes=8)'
    )


def pictures(count: int, side: int) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(side, side), mode="bilinear")


def loader(*tensors: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=32)


def calmed(network: nn.Module, images: Tensor) -> nn.Module:
    """With BatchNorm's statistics of these images, without which a fresh network says the same of all."""
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def segmentation() -> dict[str, Any]:
    torch.manual_seed(0)
    images = pictures(48, 64)
    network = calmed(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4), images)
    with torch.no_grad():
        masks = network(images)["out"].argmax(1)  # what is true is what the unpruned network says
    seen, held = slice(32), slice(32, None)
    given = {"val_images": images[held], "val_masks": masks[held], "classes": 4, "lraspp": network}
    return given | {"train_loader": loader(images[seen], masks[seen]), "example": ((images[:1],), {})}


def two_inputs() -> dict[str, Any]:
    torch.manual_seed(0)
    images = pictures(128, 16)
    depth = images[:, :1] - images[:, 1:2]
    example = ((), {"image": images[:1], "depth": depth[:1]})
    return {"rgbd": TwoInputs().eval(), "images": images, "depth": depth, "example": example}


def detection() -> dict[str, Any]:
    torch.manual_seed(0)
    images = pictures(24, 96)
    detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    assert isinstance(detector.backbone, nn.Module)
    calmed(detector.backbone, images)
    detector.eval().score_thresh = 0.0
    held = images[16:]
    with torch.no_grad():
        sizes: list[tuple[int, int]] = [(96, 96)] * len(held)
        features = list(detector.backbone(held).values())
        anchors = detector.anchor_generator(ImageList(held, sizes), features)
        found = detector.postprocess_detections(detector.head(features), anchors, sizes)
    boxes = [each["boxes"][each["scores"].argsort(descending=True)[:1]] for each in found]
    given = {"ssd": detector, "val_images": held, "val_boxes": boxes, "ImageList": ImageList, "box_iou": box_iou}
    return given | {"train_loader": loader(images[:16], torch.zeros(16)), "example": ((images[:1],), {})}


def unlabelled() -> dict[str, Any]:
    torch.manual_seed(0)
    images = pictures(128, 16)
    return {
        "classifier": resnet_cifar(8, 10).eval(),
        "unlabelled_loader": loader(images),
        "example": ((images[:1],), {}),
    }


STAND_INS = (segmentation, two_inputs, detection, unlabelled)
BEST = (1.0, 0.0, 1.0, 0.0)
"""What the unpruned networks are worth, by the scores of the examples."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page writes into the working folder."""
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("number", range(4), ids=[each.__name__ for each in STAND_INS])
def test_a_worked_example_is_pruned_scored_saved_loaded_and_exported(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    *examples, ending = blocks("## Four examples")
    given = STAND_INS[number]()
    scope: dict[str, Any] = {"gl": gl, "torch": torch, **given}
    exec(quick(examples[number]) + ending, scope)
    found, network, (args, kwargs) = scope["found"], scope["network"], given["example"]
    topology = gl.trace(network, args if args else kwargs)
    share = float(topology.macs(torch.tensor(found.plan.widths)) / topology.macs())
    assert 0.4 < share <= 0.5
    original, *_, last = found.rewards.values()
    assert original == pytest.approx(BEST[number], abs=1e-6) and -1 < last < original
    assert f"'original': {original}" in capsys.readouterr().out
    wanted = pytree.tree_leaves(found.model(*args, **kwargs))
    exported = torch.export.load("pruned/network.pt2").module()
    for other in (scope["small"], exported):
        torch.testing.assert_close(pytree.tree_leaves(other(*args, **kwargs)), wanted, rtol=1e-3, atol=1e-3)


def test_the_first_example_and_lightnings_own_trainer() -> None:
    torch.manual_seed(0)
    images = pictures(128, 16)
    network = resnet_cifar(8, 10).eval()
    labelled, held = (loader(part, network(part).argmax(1)) for part in images.split(64))
    first, (tuning,) = CODE.findall(PAGE)[0], blocks("## Fine-tuning")
    first = quick(first.replace("budget=0.5", "budget=0.5, agent='closed_form'"))
    scope: dict[str, Any] = {"L": L, "torch": torch, "model": network, "loader": labelled, "val_loader": held}
    exec(first, scope)
    assert Path("out/report.html").is_file()
    found, small = scope["found"], scope["small"]
    torch.testing.assert_close(small(images), found.model(images), rtol=1e-3, atol=1e-3)
    before = found.model(images)
    with torch.enable_grad():
        exec(
            tuning.replace("L.Trainer(max_epochs=10", "L.Trainer(max_epochs=1, logger=False, accelerator='cpu'"), scope
        )
    assert not torch.allclose(found.model.eval()(images), before)
