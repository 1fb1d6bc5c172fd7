"""What `make gpu` runs, as far as a CPU can show: the whole script on a few images, and its training by the clock."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from gnnrl_lightning.data import IMAGENET, HeldImages
from gnnrl_lightning.data.images import MemoryImages
from gnnrl_lightning.models.resnet_cifar import resnet_cifar

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Arguments for a few images of two classes and weights that nothing was trained to."""
    pixels = torch.randint(256, (2, 2, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for split, name in enumerate(("train", "test")):
        for label in range(2):
            folder = tmp_path / "images" / name / f"class{label}"
            folder.mkdir(parents=True)
            for index, image in enumerate(pixels[split, label]):
                Image.fromarray(image.numpy()).save(folder / f"{index}.png")
    (tmp_path / "weights").mkdir()
    torch.save(resnet_cifar(20, 2).state_dict(), tmp_path / "weights" / "resnet20-random.th")
    return ["--data", str(tmp_path / "images"), "--weights", str(tmp_path / "weights"), "--classes", "2"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_is_content(capsys: pytest.CaptureFixture[str]) -> None:
    import gpu

    gpu.main([])
    assert capsys.readouterr().out == f"{gpu.NOWHERE}\n"


def test_what_is_missing_is_named(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import gpu

    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--device", "cpu"])
    assert "make gpu DATA=" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        gpu.main([*folders, "--device", "cpu", "--depths", "56"])
    assert "holds no resnet56" in capsys.readouterr().err


def test_a_training_ends_by_the_clock_and_its_seed_decides() -> None:
    from on_device import Images, fine_tuned

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(40) % 2
    held = HeldImages(pixels, IMAGENET)
    images = Images(MemoryImages(pixels, labels), (held, labels), (held, labels))
    network = resnet_cifar(8, 2).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run = fine_tuned(network, network, images, seed=0, seconds=0.5)
    assert 0.5 <= run["seconds"] < 5 and run["steps"] > 1 and run["epochs"] == run["steps"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "a copy is trained"
    losses = [fine_tuned(network, network, images, seed, seconds=0.0)["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_the_whole_script_runs_on_a_few_images(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu

    out = tmp_path / "gpu.json"
    small = ["--device", "cpu", "--minutes", "0.01", "--images", "8", "--depths", "20", "--seeds", "0", "1"]
    gpu.main([*folders, *small, "--budgets", "0.5", "--out", str(out)])
    results = json.loads(out.read_text())
    (row,) = results["networks"]
    assert row["cost_percent"] <= 50 and len(row["widths"]) == 12 and row["plan"] in row["rewards"]
    assert set(row["top1"]) == {"original", "refitted", "in sequence"}
    assert [run["seed"] for run in row["fine_tuned"]] == [0, 1]
    assert results["images"] == {"train": 8, "test": 8} and results["search"]["ratio"] > 0
    table = capsys.readouterr().out
    assert "| resnet20 | 0.5 |" in table and "(2 seeds)" in table and "An iteration of the search takes" in table
