"""What a search shows and writes while it runs."""

import csv
import io
import logging
from pathlib import Path

import lightning as L
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gnnrl_lightning.files import write_text
from gnnrl_lightning.search.module import HISTORY, SearchModule

log = logging.getLogger(__name__)


class SearchProgress(L.Callback):
    """A bar over the episodes: best reward so far, its cost, and the time left."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draws the bar on rank 0."""
        assert isinstance(module, SearchModule)
        if trainer.is_global_zero:
            self._bar = Progress(
                TextColumn("search"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("episodes · best {task.fields[best]}"),
                TimeRemainingColumn(),
            )
            done = len(module.history)
            self._task = self._bar.add_task("search", total=module.episodes, completed=done, best="–")
            self._bar.start()
        module.on_reward = self._advance

    def _advance(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Says how the iteration went."""
        assert isinstance(module, SearchModule)
        if self._bar is None or self._task is None:
            return
        best = module.best
        shown = f"{best['reward']:.2f} % at {100 * best['cost_ratio']:.1f} % of the cost"
        self._bar.update(self._task, completed=len(module.history), best=shown)
        log.debug("episode %d of %d: best %s", len(module.history), module.episodes, shown)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Gives the terminal back."""
        if self._bar is not None:
            self._bar.stop()


class SearchState(L.Callback):
    """Writes `history.csv` and `checkpoints/last.ckpt` after every iteration, each whole or not at all.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def checkpoint(self) -> Path:
        """The state that a killed search resumes from."""
        return self.folder / "checkpoints" / "last.ckpt"

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes both files; all ranks take part in gathering the state."""
        assert isinstance(module, SearchModule)
        if trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
            writer.writeheader()
            writer.writerows(module.history)
            write_text(self.folder / "history.csv", text.getvalue())
        temporary = self.checkpoint.with_suffix(".tmp")
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            temporary.replace(self.checkpoint)
