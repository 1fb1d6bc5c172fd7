"""Bars over long work under Lightning: how far, how well, how much longer."""

import logging
from typing import Any

import lightning as L
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gnnrl_lightning.core.numbers import duration
from gnnrl_lightning.training.supervised import SupervisedModule

log = logging.getLogger(__name__)

_WIDE = 110


class Bar(L.Callback):
    """One bar over a whole fit, on rank 0; the terminal is given back however the fit ends."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def start(self, trainer: L.Trainer, name: str, unit: str, total: int, done: int = 0) -> None:
        """Draws the bar.

        Args:
            trainer: Whose fit it is.
            name: What is under way.
            unit: What is counted.
            total: How many there are.
            done: How many an earlier run has done.
        """
        if trainer.is_global_zero:
            wide = get_console().width >= _WIDE  # else there is room for the numbers alone
            columns = (MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
            state = TextColumn("{task.fields[state]}")  # last, because short lines cut the end
            self._bar = Progress(TextColumn(name), *([BarColumn()] if wide else []), *columns, state)
            self._task = self._bar.add_task(name, total=total, completed=done, state="")
            self._bar.start()

    def show(self, done: int | None = None, state: str | None = None) -> None:
        """Moves the bar to `done`, or one on, and says how it goes."""
        if self._bar is not None:
            fields = {} if state is None else {"state": state}
            self._bar.update(self._task, completed=done, advance=1 if done is None else None, **fields)  # type: ignore[arg-type]

    @property
    def left(self) -> str:
        """The time left, as far as it is known."""
        seconds = None if self._bar is None else self._bar.tasks[self._task].time_remaining
        return "" if seconds is None else f", {duration(seconds)} left"

    def note(self, text: str) -> None:
        """Says something in the log's file; where no bar is seen, also where its lines go otherwise."""
        seen = self._bar is None or self._bar.console.is_terminal or self._bar.console.is_jupyter
        log.log(logging.DEBUG if seen else logging.INFO, text)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives the terminal back."""
        self.on_fit_end(trainer, pl_module)


class FitProgress(Bar):
    """A bar over the steps of a supervised training: loss, top-1 on the reward split, the best so far."""

    def __init__(self) -> None:
        super().__init__()
        self._loss = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the bar, once the images say how many steps there are."""
        assert isinstance(pl_module, SupervisedModule)
        self._loss = ""
        self.start(trainer, f"training {pl_module.stage}", "steps", pl_module.steps, trainer.global_step)
        self.show(trainer.global_step, self._state(pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Says how the step went."""
        assert isinstance(pl_module, SupervisedModule)
        self._loss = f"loss {float(outputs['loss']):.3f}"
        self.show(trainer.global_step, self._state(pl_module))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says how it goes, in the log too."""
        assert isinstance(pl_module, SupervisedModule)
        self.show(trainer.global_step, self._state(pl_module))
        self.note(f"{pl_module.stage}: {trainer.global_step} steps: {self._state(pl_module)}")

    def _state(self, module: SupervisedModule) -> str:
        """The loss of the last step, and the last and best top-1, as far as there are any."""
        parts = [self._loss] if self._loss else []
        if module.best is not None:
            parts.append(f"top-1 {module.curve[-1]['top1']:.2f} %, best {module.best['top1']:.2f} %")
        return " · ".join(parts)
