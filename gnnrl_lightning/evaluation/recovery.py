"""Recovery: what a pruned network may do before its reward is taken. Called with training images, never others."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError, require_number, require_whole
from gnnrl_lightning.core.inputs import call
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.core.sgd import modes_of, restore, sgd_steps, steps_per_epoch

_CALIBRATION = 2048  # images that do to re-estimate BatchNorm statistics before a training


def recalibrate(model: nn.Module, images: Samples, batch_size: int) -> None:
    """Re-estimates the statistics of every BatchNorm layer as the plain mean over batches; no weight changes.

    After pruning the activations have other means and variances than those stored, and most of the accuracy that seems
    lost is lost to that (Li et al., "EagleEye", ECCV 2020).

    Args:
        model: Changed in place; its train/eval flags are restored.
        images: Training images, [N, 3, H, W].
        batch_size: Images a forward pass; a last image alone is left out, since it has no variance.

    Raises:
        UserError: If no batch has two images; the network is as it was then.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not layers:
        return
    starts = range(0, len(images) - 1, batch_size)  # none at the last image: alone it has no variance
    if not starts or batch_size < 2:
        raise UserError(
            f"{len(images)} images in batches of {batch_size} do not do to recalibrate BatchNorm; "
            "give at least two images and batches of at least two."
        )
    modes, momenta = modes_of(model), [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's way to say: the cumulative mean
        layer.train()
    with torch.no_grad():
        for start in starts:
            call(model, images[start : start + batch_size])
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    restore(modes)


class NoRecovery:
    """The reward is taken straight after pruning."""

    images: int | None = 0

    def __call__(self, model: nn.Module, images: Samples, labels: Tensor) -> None:
        """Does nothing."""


class BatchNormRecovery:
    """Re-estimates BatchNorm statistics, see `recalibrate`.

    Args:
        images: How many training images, at least 2; None: all.
        batch_size: Images a forward pass, at least 2.

    Raises:
        UserError: If a value is out of range.
    """

    def __init__(self, images: int | None, batch_size: int):
        _check_images(images, batch_size)
        self.images = images
        self.batch_size = batch_size

    def __call__(self, model: nn.Module, images: Samples, labels: Tensor) -> None:
        """Recalibrates the network in place."""
        recalibrate(model, images, self.batch_size)


class FinetuneRecovery:
    """SGD on training images, after BatchNorm was recalibrated.

    The paper gives MobileNets on ImageNet one epoch of all training images before each reward.

    Args:
        images: How many training images an epoch is of, at least 2; None: all.
        batch_size: Images a step, at least 2.
        epochs: Passes over these images, above 0; a part of one is rounded to whole steps, and at least one is made.
        lr: Learning rate above 0, constant.

    Raises:
        UserError: If a value is out of range.
    """

    needs_labels = True

    def __init__(self, images: int | None, batch_size: int, epochs: float, lr: float):
        _check_images(images, batch_size)
        require_number("recovery.epochs", epochs, above=0)
        require_number("recovery.lr", lr, above=0)
        self.images = images
        self.batch_size = batch_size
        self.epochs = epochs
        self.lr = lr

    def __call__(self, model: nn.Module, images: Samples, labels: Tensor) -> None:
        """Trains the network in place; the same network and images give the same result."""
        # Training goes on to move the statistics: all images would make an epoch a third dearer and change nothing.
        recalibrate(model, images.first(_CALIBRATION), self.batch_size)
        steps = max(1, round(self.epochs * steps_per_epoch(len(images), self.batch_size)))
        # One seed for all, so that a reward has one value and networks differ by their widths alone.
        for _ in sgd_steps(model, images, labels, self.batch_size, self.lr, steps, seed=0):
            pass


def _check_images(images: int | None, batch_size: int) -> None:
    """BatchNorm needs two images: one has no variance."""
    if images is not None:
        require_whole("recovery.images", images, 2)
    require_whole("recovery.batch_size", batch_size, 2)
