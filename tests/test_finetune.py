import copy
import re

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.settings import FitConfig
from gnnrl_lightning.training.progress import FitProgress
from gnnrl_lightning.training.supervised import SupervisedModule


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


def fitted(module: SupervisedModule, loader: DataLoader, callback: L.Callback, **limits: int) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **limits,
    )
    trainer.fit(module, loader, loader)
    return trainer


def trained(loader: DataLoader, **limits: int) -> tuple[L.Trainer, Watch]:
    torch.manual_seed(0)
    watch = Watch()
    settings = FitConfig(epochs=1, max_steps=limits.pop("max_steps", -1), lr=0.1, weight_decay=1e-4)
    return fitted(SupervisedModule(resnet_cifar(8, 3), 3, "finetune", settings), loader, watch, **limits), watch


def test_it_learns(loader: DataLoader) -> None:
    trainer, watch = trained(loader, max_epochs=8)
    assert len(watch.losses) == 24
    assert sum(watch.losses[-3:]) < 0.3 * sum(watch.losses[:3])
    assert float(trainer.callback_metrics["finetune/reward_top1"]) > 0.9


@pytest.mark.parametrize("limits", [{"max_epochs": 4}, {"max_epochs": 100, "max_steps": 7}])
def test_the_learning_rate_is_annealed_to_nothing(loader: DataLoader, limits: dict[str, int]) -> None:
    """A cosine over all steps there will be, whether epochs or steps limit them."""
    _, watch = trained(loader, **limits)
    steps = limits.get("max_steps", 12)
    expected = 0.05 * (1 + torch.cos(torch.pi * torch.arange(1, steps + 1) / steps))
    torch.testing.assert_close(torch.tensor(watch.rates), expected, rtol=1e-4, atol=1e-6)


def test_accuracy_is_over_all_images(loader: DataLoader) -> None:
    trainer, _ = trained(loader, max_epochs=2)
    module = trainer.lightning_module.eval()
    images, labels = loader.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        top1 = (module(images).argmax(1) == labels).float().mean()
    torch.testing.assert_close(trainer.callback_metrics["finetune/reward_top1"], top1)


def test_the_bar_counts_all_steps_and_keeps_the_best(loader: DataLoader, caplog: pytest.LogCaptureFixture) -> None:
    bar = FitProgress()
    module = SupervisedModule(resnet_cifar(8, 3), 3, "finetune", FitConfig(epochs=1, max_steps=9, lr=0.05))
    with caplog.at_level("DEBUG", "gnnrl_lightning.training.progress"):
        fitted(module, loader, bar, max_epochs=100)
    assert bar._bar is not None and bar._bar.finished
    task = bar._bar.tasks[0]
    assert (task.completed, task.total) == (9, 9)
    shown = [float(best) for best in re.findall(r"best ([\d.]+) %", caplog.text)]
    assert len(shown) == 3 and shown == sorted(shown) and shown[-1] > 0
    assert f"finetune: 9 steps: {task.fields['state']}" in caplog.messages


def first_loss(loader: DataLoader, teacher: nn.Module | None = None, **settings: float) -> tuple[nn.Module, float]:
    """A fresh network, and the loss of its first step."""
    torch.manual_seed(0)
    network = resnet_cifar(8, 3)
    before = copy.deepcopy(network)
    module = SupervisedModule(network, 3, "finetune", FitConfig(epochs=1, lr=0.1, **settings), teacher=teacher)
    watch = Watch()
    fitted(module, loader, watch, max_steps=1)
    return before.train(), watch.losses[0]


def test_labels_are_smoothed(loader: DataLoader) -> None:
    images, labels = next(iter(loader))
    network, loss = first_loss(loader, label_smoothing=0.2)
    targets = torch.full((len(labels), 3), 0.2 / 3).scatter(1, labels[:, None], 0.8 + 0.2 / 3)
    expected = -(targets * network(images).log_softmax(1)).sum(1).mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_it_learns_from_a_teacher(loader: DataLoader) -> None:
    """Share of the loss: T² · KL(teacher || student) at temperature T; the teacher is in eval and stays as it is."""
    torch.manual_seed(1)
    teacher = resnet_cifar(8, 3)
    state = copy.deepcopy(teacher.state_dict())
    images, labels = next(iter(loader))
    network, loss = first_loss(loader, teacher, distill=0.25, temperature=2.0)
    with torch.no_grad():
        student, target = network(images), (copy.deepcopy(teacher).eval()(images) / 2).softmax(1)
    distance = (target * (target.log() - (student / 2).log_softmax(1))).sum(1).mean()
    expected = 0.75 * F.cross_entropy(student, labels) + 0.25 * 4 * distance
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_are_mixed(loader: DataLoader, kind: str) -> None:
    _, plain = first_loss(loader)
    _, loss = first_loss(loader, **{kind: 1.0})
    assert loss != plain and loss == first_loss(loader, **{kind: 1.0})[1]


def test_the_average_is_what_is_evaluated_and_kept(loader: DataLoader) -> None:
    torch.manual_seed(0)
    network = resnet_cifar(8, 3)
    module = SupervisedModule(network, 3, "finetune", FitConfig(epochs=1, lr=0.1, ema_decay=0.5))
    seen: list[Tensor] = []

    class Weights(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
            seen.append(network.conv1.weight.detach().clone())

    fitted(module, loader, Weights(), max_epochs=1)
    assert len(seen) == 3 and module.best is not None
    torch.testing.assert_close(module.best["weights"]["conv1.weight"], (seen[0] + seen[1]) / 4 + seen[2] / 2)


def test_the_weights_of_the_best_epoch_are_kept(loader: DataLoader) -> None:
    torch.manual_seed(0)
    network = resnet_cifar(8, 3)
    module = SupervisedModule(network, 3, "finetune", FitConfig(epochs=1, lr=0.1))
    seen: list[tuple[float, Tensor]] = []

    class Epochs(L.Callback):
        def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            if trainer.current_epoch == 5:
                nn.init.zeros_(network.linear.weight)

        def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            seen.append(
                (float(trainer.callback_metrics["finetune/reward_top1"]), network.conv1.weight.detach().clone())
            )

    fitted(module, loader, Epochs(), max_epochs=6)
    best = max(range(6), key=lambda epoch: (seen[epoch][0], epoch))
    assert module.best is not None and module.best["top1"] == pytest.approx(100 * seen[best][0])
    assert [point["top1"] for point in module.curve] == pytest.approx([100 * top1 for top1, _ in seen], abs=1e-4)
    assert torch.equal(module.best["weights"]["conv1.weight"], seen[best][1])
    assert best < 5
