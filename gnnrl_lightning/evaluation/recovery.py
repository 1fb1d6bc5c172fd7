"""Recovery: what a pruned network may do before its reward is taken. Called with training images, never others."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnrl_lightning.config import require_number, require_whole
from gnnrl_lightning.data.preprocessing import HeldImages


def recalibrate(model: nn.Module, images: HeldImages, batch_size: int) -> None:
    """Re-estimates the statistics of every BatchNorm layer as the plain mean over batches; no weight changes.

    After pruning the activations have other means and variances than those stored, and most of the accuracy that seems
    lost is lost to that (Li et al., "EagleEye", ECCV 2020).

    Args:
        model: Changed in place; its train/eval flags are restored.
        images: Training images, [N, 3, H, W].
        batch_size: Images a forward pass; a last image alone is left out, since it has no variance.

    Raises:
        ValueError: If no batch has two images; the network is as it was then.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not layers:
        return
    starts = range(0, len(images) - 1, batch_size)  # none at the last image: alone it has no variance
    if not starts or batch_size < 2:
        raise ValueError(
            f"{len(images)} images in batches of {batch_size} do not do to recalibrate BatchNorm; "
            "give at least two images and batches of at least two."
        )
    modes, momenta = _modes(model), [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's way to say: the cumulative mean
        layer.train()
    with torch.inference_mode():
        for start in starts:
            model(images[start : start + batch_size])
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    _restore(modes)


class NoRecovery:
    """The reward is taken straight after pruning."""

    images = 0

    def __call__(self, model: nn.Module, images: HeldImages, labels: Tensor) -> None:
        """Does nothing."""


class BatchNormRecovery:
    """Re-estimates BatchNorm statistics, see `recalibrate`.

    Args:
        images: How many training images, at least 2.
        batch_size: Images a forward pass, at least 2.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(self, images: int, batch_size: int):
        _check_images(images, batch_size)
        self.images = images
        self.batch_size = batch_size

    def __call__(self, model: nn.Module, images: HeldImages, labels: Tensor) -> None:
        """Recalibrates the network in place."""
        recalibrate(model, images, self.batch_size)


class FinetuneRecovery:
    """A few steps of SGD on training images, after BatchNorm was recalibrated.

    The paper gives MobileNets on ImageNet one epoch before each reward.

    Args:
        images: How many training images to draw batches from, at least 2.
        batch_size: Images a step, at least 2.
        steps: Number of SGD steps, at least 1.
        lr: Learning rate above 0, constant.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(self, images: int, batch_size: int, steps: int, lr: float):
        _check_images(images, batch_size)
        require_whole("recovery.steps", steps, 1)
        require_number("recovery.lr", lr, above=0)
        self.images = images
        self.batch_size = batch_size
        self.steps = steps
        self.lr = lr

    def __call__(self, model: nn.Module, images: HeldImages, labels: Tensor) -> None:
        """Trains the network in place; the same network and images give the same result."""
        recalibrate(model, images, self.batch_size)
        modes = _modes(model)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), self.lr, momentum=0.9, weight_decay=4e-5)
        order = _batches(len(images), self.batch_size, self.steps)
        # Dropout inside the network would draw from the global generator: fork it, so that a reward has one value.
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            for batch in order:
                optimizer.zero_grad()
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
        _restore(modes)


def _check_images(images: int, batch_size: int) -> None:
    """BatchNorm needs two images: one has no variance."""
    require_whole("recovery.images", images, 2)
    require_whole("recovery.batch_size", batch_size, 2)


def _modes(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for module in model.modules()]


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def _batches(images: int, batch_size: int, steps: int) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    batches: list[Tensor] = []
    while len(batches) < steps:
        order = torch.randperm(images, generator=generator)
        batches += [batch for batch in order.split(batch_size) if len(batch) == min(batch_size, images)]
    return batches[:steps]
