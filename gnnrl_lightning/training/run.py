"""A run: its folder, its settings, its trainers, and the processes that share it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from gnnrl_lightning.training.checkpoints import select


@dataclass
class Run:
    """What every training and every search of one run shares.

    Attributes:
        folder: Where its files go.
        settings: All of them, as plain values.
        options: Makes arguments of Lightning's Trainer: devices, strategy, precision.
        callbacks: Makes the callbacks of base training and fine-tuning.
        logger: Where metrics go, while it is open.
    """

    folder: Path
    settings: dict[str, Any]
    options: Callable[[], dict[str, Any]]
    callbacks: Callable[[], list[L.Callback]] = list
    logger: list[Logger] = field(default_factory=list)

    def trainer(self, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
        """A trainer on the run's devices; `options` outweigh the run's."""
        common = {
            "logger": self.logger or False,
            "callbacks": callbacks,
            "default_root_dir": self.folder,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        return L.Trainer(**self.options() | common | options)

    @cached_property
    def device(self) -> torch.device:
        """Where networks are evaluated: this process's device."""
        return self._bare().strategy.root_device

    @cached_property
    def ranks(self) -> int:
        """How many processes train and search together."""
        return self._bare().world_size

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and prints: the first of those that are or will be joined."""
        return getattr(rank_zero_only, "rank", 0) == 0

    def join(self) -> None:
        """Starts the processes that train and search together and connects them, where there are several; once."""
        trainer = self._bare()
        if trainer.world_size > 1 and not torch.distributed.is_initialized():
            launcher = trainer.strategy.launcher
            assert launcher is not None
            launcher.launch(trainer.strategy.setup_environment, trainer=None)

    def select(self, names: Iterable[str]) -> dict[str, Any]:
        """Some settings by dotted names; see `select`."""
        return select(self.settings, names)

    def _bare(self) -> L.Trainer:
        return self.trainer([], logger=False, enable_progress_bar=False)
