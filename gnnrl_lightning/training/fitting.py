"""A supervised training under Lightning: fresh, or one that was stopped."""

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from torch import nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.layout import to_fastest_layout
from gnnrl_lightning.data import ImageDataModule
from gnnrl_lightning.settings import FitConfig
from gnnrl_lightning.training.checkpoints import LastCheckpoint, read_checkpoint
from gnnrl_lightning.training.run import Run
from gnnrl_lightning.training.supervised import Curve, SupervisedModule

log = logging.getLogger(__name__)

_VALIDATIONS = 5
"""How often a training is validated at least, if it has as many steps."""


def fit(
    model: nn.Module,
    data: ImageDataModule,
    settings: FitConfig,
    stage: str,
    run: Run,
    checkpoint: Path,
    teacher: nn.Module | None = None,
) -> Curve:
    """Trains a network in place, to the weights of its best validation; goes on where an earlier run was stopped.

    It is validated after every epoch, but a training of less than five epochs in five equal parts.

    Args:
        model: The network.
        data: Serves the training images and the reward split.
        settings: Epochs, learning rate and so on; neither epochs nor steps: nothing happens.
        stage: Prefix of the metrics: base or finetune.
        run: Its trainer, callbacks and loggers.
        checkpoint: The state after each epoch.
        teacher: The unpruned network, where `settings.distill` asks for one.

    Returns:
        The training images seen, all ranks together, and the top-1 in % on the reward split of each validation; the
        first of a fine-tuning is before any training, the last of all at the end.

    Raises:
        UserError: If training diverged, or the checkpoint is of a training with other settings.
    """
    names = ("model", "plan", "weights", "teacher", "data", "reward_split", "seed", "episodes", "finalists")
    configured = run.select(name for name in names if name in run.settings) | asdict(settings)
    module = SupervisedModule(model, data.num_classes, stage, settings, run.settings["seed"], teacher, configured)
    last = LastCheckpoint(checkpoint)
    callbacks = [last, *run.callbacks()]
    trainer = run.trainer(
        callbacks if run.logger else [c for c in callbacks if not _needs_logger(c)],
        max_epochs=settings.epochs,
        enable_progress_bar=any(isinstance(each, ProgressBar) for each in callbacks),  # else Lightning adds its own
        gradient_clip_val=settings.gradient_clip,
        log_every_n_steps=10,
        **_validations(settings, data, run.ranks),
    )
    images = data.tensors("reward", 1)[0][:].to(next(model.parameters()).device)
    module.layout = to_fastest_layout(model, images)
    model.train()  # Lightning keeps the mode it finds, and a network fresh from its evaluation is in eval
    if last.found:
        read_checkpoint(last.found)
        log.info("resuming from %s", last.found)
    elif stage == "finetune":  # a base network knows nothing yet
        trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data, ckpt_path=last.found, weights_only=True)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            option = "fit" if "fit" in run.settings else stage
            raise UserError(
                f"{stage} training diverged ({name} is not finite) with {option}.lr={settings.lr}; lower {option}.lr, "
                f"e.g. {option}.lr={settings.lr / 10:g}."
            )
    if not module.curve or module.curve[-1]["images"] < module.images:
        trainer.validate(module, datamodule=data, verbose=False)
    assert module.best is not None
    model.load_state_dict(module.best["weights"])
    return module.curve


def _validations(settings: FitConfig, data: ImageDataModule, ranks: int) -> dict[str, Any]:
    """When to validate, as options of the trainer; none of them has it validate after every epoch."""
    epoch = max(1, len(data.splits["train"].labels) // (data.batch_size * ranks))
    steps = settings.epochs * epoch
    if settings.max_steps >= 0:
        steps = min(steps, settings.max_steps)
    if steps >= _VALIDATIONS * epoch:
        return {}
    # None counts the steps through the epochs, so that the last part ends where the training ends.
    return {"check_val_every_n_epoch": None, "val_check_interval": max(1, math.ceil(steps / _VALIDATIONS))}


def _needs_logger(callback: L.Callback) -> bool:
    return isinstance(callback, L.pytorch.callbacks.LearningRateMonitor)
