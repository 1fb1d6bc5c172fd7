"""What a killed run goes on from: a checkpoint that is always whole, and settings that must still be the same."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from gnnrl_lightning.core.checks import UserError

_LOADING = ("data.num_workers", "data.eval_batch_size")
"""Settings that only say how images are loaded."""


class LastCheckpoint(L.Callback):
    """Saves the state of a fit after every epoch, whole or not at all.

    Args:
        path: Of the checkpoint.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def found(self) -> Path | None:
        """What an earlier run left to go on from, if it did."""
        return self.path if self.path.is_file() else None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves it; all ranks take part in gathering the state."""
        temporary = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            temporary.replace(self.path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without running what it may hold of code.

    Raises:
        UserError: If it is damaged, or holds more than tensors and plain values.
    """
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of pickle, zip files and more
        reason = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise UserError(f"{path} is no checkpoint to go on from ({reason}); delete it to start anew.") from error
    return saved


def select(settings: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Some settings by dotted names, each leaf on its own, without what only says how images are loaded."""
    return {key: leaf for name in names for key, leaf in _leaves(_at(settings, name), name).items()}


def require_same(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError unless a stopped run had these settings."""
    other = [key for key in now | then if then.get(key) != now.get(key)]
    if other:
        was = ", ".join(f"{key}={then.get(key)}" for key in other)
        raise UserError(f"the checkpoint is of a run with {was}; resume with the same settings or start anew.")


def _at(settings: Any, name: str) -> Any:
    for key in name.split("."):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def _leaves(node: Any, path: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {} if path in _LOADING else {path: node}
    return {name: leaf for key, value in node.items() for name, leaf in _leaves(value, f"{path}.{key}").items()}
