"""What a search shows and writes while it runs."""

import logging
from pathlib import Path

import lightning as L

from gnnrl_lightning.core.files import write_csv
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.searching.module import HISTORY, SearchModule
from gnnrl_lightning.training.checkpoints import LastCheckpoint
from gnnrl_lightning.training.progress import Bar

log = logging.getLogger(__name__)


class SearchProgress(Bar):
    """A bar over the episodes: best reward so far, its cost, and the time left.

    Args:
        protocol: What a reward is.
    """

    def __init__(self, protocol: Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self._tenth = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the bar."""
        assert isinstance(pl_module, SearchModule)
        self.start(trainer, "search", "episodes", pl_module.episodes, len(pl_module.history))
        pl_module.on_reward = self.show

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says how the iteration went; in the log at every tenth of the search."""
        assert isinstance(pl_module, SearchModule)
        best = pl_module.best
        state = f"best {self.protocol.best(best['reward'])} at {100 * best['cost_ratio']:.1f} % of the cost"
        done, total = len(pl_module.history), pl_module.episodes
        self.show(done, state)
        if 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            self.note(f"search: {done} of {total} episodes: {state}{self.left}")


class SearchState(LastCheckpoint):
    """Writes `history.csv` and `checkpoints/last.ckpt` after every iteration, each whole or not at all.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path):
        super().__init__(folder / "checkpoints" / "last.ckpt")
        self.folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes both files."""
        assert isinstance(pl_module, SearchModule)
        if trainer.is_global_zero:
            write_csv(self.folder / "history.csv", pl_module.history, HISTORY)
        super().on_train_epoch_end(trainer, pl_module)
