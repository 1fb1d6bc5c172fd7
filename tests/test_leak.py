"""No number is taken from the other's images: rewards from val/, accuracies from test/, recomputed from a run's folder.

The images are read here by hand, not by the data modules.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import gnnrl_lightning as gl

PARTS = {"train": slice(0, 1000), "val": slice(1000, 1300), "test": slice(1300, None)}


def save_images(root: Path) -> None:
    digits = load_digits()
    for part, rows in PARTS.items():
        for number, (image, label) in enumerate(zip(digits.images[rows], digits.target[rows], strict=True)):
            path = root / part / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((16, 16))
            grey.convert("RGB").save(path)


def top1_on(folder: Path, network: nn.Module, preprocessing: dict[str, tuple[float, ...]]) -> float:
    """Accuracy in % on the images of a folder of classes."""
    mean, std = (torch.tensor(preprocessing[name]).view(3, 1, 1) for name in ("mean", "std"))
    hits = []
    for path in sorted(folder.glob("*/*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
        with torch.no_grad():
            hits.append(int(network(((pixels - mean) / std).unsqueeze(0)).argmax()) == int(path.parent.name))
    return 100 * sum(hits) / len(hits)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leak")
    save_images(folder / "images")
    asked = f"model=resnet20 data=folder data.root={folder / 'images'} data.num_classes=10 budget=0.5 agent=closed_form"
    quick = "base.epochs=3 recovery.images=256 refit.images=256 finish.enabled=false finetune.epochs=0 logger=none"
    where = f"reward_split=held_out paths.root={folder} paths.run={folder / 'run'}"
    outcome = run("search.py", f"{asked} {quick} {where}".split(), folder)
    assert outcome.code == 0, outcome.err
    return folder


def test_rewards_and_accuracies_are_from_images_of_their_own(finished: Path) -> None:
    results = json.loads((finished / "run" / "results.json").read_text())
    preprocessing = json.loads((finished / "run" / "plan.json").read_text())["data"]["preprocessing"]
    network = gl.load_pruned(finished / "run")
    found = {part: top1_on(finished / "images" / part, network, preprocessing) for part in PARTS}
    assert len(set(found.values())) == 3  # else a number could come from the wrong ones unseen
    (tested,) = [stage["top1"] for stage in results["networks"] if stage["name"] == "pruned"]
    assert tested == pytest.approx(found["test"], abs=1e-4)
    assert results["weights"]["rewards"][_taken(results)] + 100 == pytest.approx(found["val"], abs=1e-4)
    if _taken(results) == "refitted":
        assert results["reward"]["whole_split"] + 100 == pytest.approx(found["val"], abs=1e-4)
    assert results["images"] == {"train": 1000, "reward": 300, "test": 497}


def _taken(results: dict) -> str:  # type: ignore[type-arg]
    name: str = results["weights"]["from"]
    return name
