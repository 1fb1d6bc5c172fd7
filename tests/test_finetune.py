import re
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from gnnrl_lightning.finetune import SupervisedModule
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.progress import FitProgress


@pytest.fixture(scope="module")
def loader() -> DataLoader:
    """Images whose class is the colour channel that is brightest."""
    labels = torch.arange(60) % 3
    images = 0.1 * torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[torch.arange(60), labels] += 1
    return DataLoader(TensorDataset(images, labels), batch_size=20)


class Watch(L.Callback):
    """Notes the loss and the learning rate of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        self.losses.append(float(trainer.callback_metrics["finetune/train_loss"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def trained(loader: DataLoader, folder: Path, **limits: int) -> tuple[L.Trainer, Watch]:
    torch.manual_seed(0)
    watch = Watch()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **limits,
    )
    module = SupervisedModule(resnet_cifar(8, 3), 3, "finetune", lr=0.1, momentum=0.9, weight_decay=1e-4)
    trainer.fit(module, loader, loader)
    return trainer, watch


def test_it_learns(loader: DataLoader, tmp_path: Path) -> None:
    trainer, watch = trained(loader, tmp_path, max_epochs=8)
    assert len(watch.losses) == 24
    assert sum(watch.losses[-3:]) < 0.3 * sum(watch.losses[:3])
    assert float(trainer.callback_metrics["finetune/reward_top1"]) > 0.9


@pytest.mark.parametrize("limits", [{"max_epochs": 4}, {"max_epochs": 100, "max_steps": 7}])
def test_the_learning_rate_is_annealed_to_nothing(loader: DataLoader, tmp_path: Path, limits: dict[str, int]) -> None:
    """A cosine over all steps there will be, whether epochs or steps limit them."""
    _, watch = trained(loader, tmp_path, **limits)
    steps = limits.get("max_steps", 12)
    expected = 0.05 * (1 + torch.cos(torch.pi * torch.arange(1, steps + 1) / steps))
    torch.testing.assert_close(torch.tensor(watch.rates), expected, rtol=1e-4, atol=1e-6)


def test_accuracy_is_over_all_images(loader: DataLoader, tmp_path: Path) -> None:
    trainer, _ = trained(loader, tmp_path, max_epochs=2)
    module = trainer.lightning_module.eval()
    images, labels = loader.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        top1 = (module(images).argmax(1) == labels).float().mean()
    torch.testing.assert_close(trainer.callback_metrics["finetune/reward_top1"], top1)


def test_the_bar_counts_all_steps_and_keeps_the_best(loader: DataLoader, caplog: pytest.LogCaptureFixture) -> None:
    bar = FitProgress()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[bar],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        max_epochs=100,
        max_steps=9,
        num_sanity_val_steps=0,
    )
    module = SupervisedModule(resnet_cifar(8, 3), 3, "finetune", lr=0.05, momentum=0.9, weight_decay=0.0)
    with caplog.at_level("DEBUG", "gnnrl_lightning.progress"):
        trainer.fit(module, loader, loader)
    assert bar._bar is not None and bar._bar.finished
    task = bar._bar.tasks[0]
    assert (task.completed, task.total) == (9, 9)
    shown = [float(best) for best in re.findall(r"best ([\d.]+) %", caplog.text)]
    assert len(shown) == 3 and shown == sorted(shown) and shown[-1] > 0
    assert f"finetune: 9 steps: {task.fields['state']}" in caplog.messages
