from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gnnrl_lightning.data import IMAGENET, DigitsDataModule
from gnnrl_lightning.models.factory import ModelSpec
from gnnrl_lightning.models.weights import load_weights, read_weights
from gnnrl_lightning.settings import FitConfig
from gnnrl_lightning.training import base
from gnnrl_lightning.training.base import save_weights, train_base
from gnnrl_lightning.training.run import Run

DATA = dict(name="digits", num_classes=10, size=32, test_images=360, reward_images=300, batch_size=128,
            eval_batch_size=500, epochs=12)  # fmt: skip
TRAINER = dict(accelerator="cpu", devices=1, strategy="auto", precision="32-true", deterministic="warn")


def run_in(folder: Path, **changes: Any) -> Run:
    paths = {"cache": str(folder), "run": str(folder / "run")}
    settings: dict[str, Any] = {"data": dict(DATA), "trainer": dict(TRAINER), "seed": 0, "paths": paths}
    for name, value in changes.items():
        group, _, setting = name.partition("__")
        if setting:
            settings[group][setting] = value
        else:
            settings[group] = value
    return Run(Path(paths["run"]), settings, lambda: settings["trainer"])


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates trained with; training itself writes them into the network's weights."""
    rates: list[float] = []

    def fit(model: nn.Module, data: object, settings: FitConfig, *rest: object) -> None:
        rates.append(settings.lr)
        nn.init.constant_(model.weight, settings.lr)

    monkeypatch.setattr(base, "fit", fit)
    return rates


def trained(folder: Path, lr: float = 0.1, name: str = "tiny", program: str = "linear", **changes: Any) -> Tensor:
    model = nn.Linear(2, 3)
    run = run_in(folder, **changes)
    data = DigitsDataModule(**run.settings["data"], preprocessing=IMAGENET, seed=0)
    train_base(model, ModelSpec("cifar", name), program, data, FitConfig(epochs=1, lr=lr), run)
    return model.weight.detach()


def test_a_second_run_takes_what_the_first_trained(tmp_path: Path, trainings: list[float]) -> None:
    first = trained(tmp_path)
    assert torch.equal(trained(tmp_path), first) and len(trainings) == 1
    assert [path.name.startswith("tiny-digits-") for path in tmp_path.glob("*.safetensors")] == [True]


@pytest.mark.parametrize("changes", [
    {"data__eval_batch_size": 10}, {"data__epochs": 3}, {"trainer__accelerator": "auto"},
    {"trainer__deterministic": True}, {"paths__run": "elsewhere"},
])  # fmt: skip
def test_what_leaves_the_network_as_it_is_needs_no_training(
    tmp_path: Path, trainings: list[float], changes: dict[str, Any]
) -> None:
    trained(tmp_path)
    trained(tmp_path, **changes)
    assert len(trainings) == 1


@pytest.mark.parametrize("changes", [
    {"data__batch_size": 64}, {"data__size": 16}, {"seed": 1}, {"lr": 0.2}, {"name": "other"}, {"program": "another"},
    {"trainer__devices": 2},    {"trainer__precision": "bf16-mixed"}, {"trainer__gradient_clip_val": 1.0},
])  # fmt: skip
def test_what_shapes_the_network_needs_a_training(
    tmp_path: Path, trainings: list[float], changes: dict[str, Any]
) -> None:
    trained(tmp_path)
    trained(tmp_path, **changes)
    assert len(trainings) == 2


def test_a_diverged_network_is_refused_and_not_kept(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    data = DigitsDataModule(**run.settings["data"], preprocessing=IMAGENET, seed=0)
    data.setup()
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(ValueError, match=r"base training diverged \(1\.\w+ is not finite\) .* lower base\.lr"):
        train_base(model, ModelSpec("cifar", "tiny"), "linear", data, FitConfig(epochs=2, lr=1e38), run)
    assert not list(tmp_path.glob("*.safetensors"))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def slices() -> nn.Module:
    """Two parameters in one piece of memory, neither contiguous."""
    model, whole = nn.Linear(3, 2), torch.randn(3, 4)
    model.weight = nn.Parameter(whole[:, :2].t())
    model.bias = nn.Parameter(whole[0, ::2])
    return model


@pytest.mark.parametrize("make", [tied, slices])
def test_weights_that_share_memory_are_saved(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    model, other = make(), make()
    save_weights(tmp_path / "weights.safetensors", model)
    assert read_weights(tmp_path / "weights.safetensors").keys() == model.state_dict().keys()
    load_weights(other, tmp_path / "weights.safetensors")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
