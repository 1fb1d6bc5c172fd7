"""Whole trainings as runs do them: when they are validated, what is kept, and how they go on after a kill."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from torch import Tensor, nn

from gnnrl_lightning.data import IMAGENET, DigitsDataModule
from gnnrl_lightning.evaluation.reward import correct
from gnnrl_lightning.settings import FitConfig
from gnnrl_lightning.training.fitting import fit
from gnnrl_lightning.training.progress import FitProgress
from gnnrl_lightning.training.run import Run
from gnnrl_lightning.training.supervised import Curve

SMALL = dict(name="digits", num_classes=10, size=8, test_images=800, reward_images=600, batch_size=64,
             eval_batch_size=500, epochs=12)  # fmt: skip
"""397 training images: epochs of 6 batches, 384 images."""


def digits() -> DigitsDataModule:
    data = DigitsDataModule(**SMALL, preprocessing=IMAGENET, seed=0)  # type: ignore[arg-type]
    data.setup()
    return data


def tiny_network() -> nn.Module:
    torch.manual_seed(0)
    inner = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1), nn.Flatten()
    return nn.Sequential(*inner, nn.Linear(16 * 64, 10), nn.BatchNorm1d(10))


def fit_digits(folder: Path, network: nn.Module, stage: str = "finetune", validated: int = 1, **settings: Any) -> Curve:
    """What a run does to a network, or what a second one does after the first was killed in the same folder."""
    trainer = {"accelerator": "cpu", "devices": 1, "check_val_every_n_epoch": validated}
    told = {"seed": 0, "data": SMALL, "trainer": trainer}
    whole = Run(folder, told, lambda: trainer, lambda: [FitProgress()])
    fitting = FitConfig(**{"lr": 0.02, "mixup": 0.2} | settings)
    return fit(network, digits(), fitting, stage, whole, folder / "last.ckpt")


def reward_top1(network: nn.Module) -> float:
    images, labels = digits().tensors("reward")
    return 100 * correct(copy.deepcopy(network), images, labels, 600) / 600


@pytest.mark.parametrize(
    ("stage", "settings", "steps"),
    [
        ("base", {"epochs": 0}, [0]),
        ("finetune", {"epochs": 0}, [0]),
        ("finetune", {"epochs": 100, "max_steps": 1}, [0, 1]),
        ("finetune", {"epochs": 100, "max_steps": 5}, [0, 1, 2, 3, 4, 5]),
        ("finetune", {"epochs": 3}, [0, 4, 8, 12, 16, 18]),
        ("finetune", {"epochs": 100, "max_steps": 23}, [0, 5, 10, 15, 20, 23]),
        ("finetune", {"epochs": 6}, [0, 6, 12, 18, 24, 30, 36]),
        ("finetune", {"epochs": 100, "max_steps": 33}, [0, 6, 12, 18, 24, 30, 33]),
        ("base", {"epochs": 1, "max_steps": 5}, [1, 2, 3, 4, 5]),
        ("base", {"epochs": 5}, [6, 12, 18, 24, 30]),
    ],
)
def test_the_curve_is_from_the_beginning_to_the_end(
    tmp_path: Path, stage: str, settings: dict[str, int], steps: list[int]
) -> None:
    """Once an epoch, or five times in all; a network from scratch has no beginning worth a look."""
    network = tiny_network()
    before = reward_top1(network)
    curve = fit_digits(tmp_path, network, stage, **settings)
    assert [point["images"] for point in curve] == [64 * step for step in steps]
    if steps[0] == 0:
        assert curve[0]["top1"] == pytest.approx(before, abs=1e-3)
    top1s = [point["top1"] for point in curve]
    assert reward_top1(network) == pytest.approx(max(top1s), abs=1e-3)
    if steps[-1] >= 18:
        assert max(top1s) > before + 5


def test_the_end_is_validated_where_the_trainer_would_not(tmp_path: Path) -> None:
    curve = fit_digits(tmp_path, tiny_network(), validated=4, epochs=6)
    assert [point["images"] for point in curve] == [64 * step for step in (0, 24, 36)]


@pytest.mark.slow
def test_two_ranks_share_an_epoch(tmp_path: Path) -> None:
    """897 images on two ranks are epochs of three steps; two of them are validated after every second step."""
    settings = "model=resnet20 data=digits data.test_images=800 data.reward_images=100 fit.epochs=2 trainer=ddp_cpu"
    outcome = run("train.py", [*settings.split(), "logger=null", f"hydra.run.dir={tmp_path / 'run'}"], tmp_path)
    assert outcome.code == 0, outcome.err
    curve = json.loads((tmp_path / "run" / "results.json").read_text())["recovery_curve"]
    assert [point["images"] for point in curve] == [2 * 128 * steps for steps in (2, 4, 6)]


def test_a_fine_tuning_that_does_harm_leaves_the_network_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = tiny_network()
    fit_digits(tmp_path / "first", network, epochs=8)
    before = copy.deepcopy(network.state_dict())
    with caplog.at_level("DEBUG", "gnnrl_lightning.training.progress"):
        caplog.clear()
        curve = fit_digits(tmp_path / "second", network, epochs=100, max_steps=2, lr=20.0)
    first, *later = [point["top1"] for point in curve]
    assert first > max(later) and len(later) == 2
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    said = [message for message in caplog.messages if message.startswith("finetune: ")]
    assert said[0] == f"finetune: 0 steps: top-1 {first:.2f} %, best {first:.2f} %"
    for steps, (top1, message) in enumerate(zip(later, said[1:], strict=True), 1):
        assert re.fullmatch(f"finetune: {steps} steps: loss [0-9.]+ · top-1 {top1:.2f} %, best {first:.2f} %", message)


@pytest.mark.parametrize(("settings", "killed"), [
    ({"epochs": 3}, 8),
    ({"epochs": 3}, 17),
    ({"epochs": 2, "ema_decay": 0.9}, 7),
    ({"epochs": 6}, 20),
    ({"epochs": 100, "max_steps": 33}, 32),
])  # fmt: skip
def test_a_resumed_training_has_the_whole_curve(tmp_path: Path, settings: dict[str, Any], killed: int) -> None:
    whole, part, resumed = tiny_network(), tiny_network(), tiny_network()
    curve = fit_digits(tmp_path / "whole", whole, **settings)
    steps = 0

    def kill(module: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal steps
        steps += module.training
        if steps > killed:
            raise KeyError("killed")

    part.register_forward_pre_hook(kill)
    with pytest.raises(KeyError, match="killed"):
        fit_digits(tmp_path / "killed", part, **settings)
    assert fit_digits(tmp_path / "killed", resumed, **settings) == curve
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    # Killed once more, at its very end: there is nothing left to train.
    again = tiny_network()
    assert fit_digits(tmp_path / "killed", again, **settings) == curve
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())
