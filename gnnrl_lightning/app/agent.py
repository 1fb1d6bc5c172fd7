"""Runs an agent's search under Lightning: a fresh one, or one that was stopped."""

import logging
from typing import Any

from gnnrl_lightning.app.run import settings_in
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.searching.callbacks import SearchProgress, SearchState
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.training.checkpoints import read_checkpoint, require_same, select
from gnnrl_lightning.training.run import Run

log = logging.getLogger(__name__)

_SHAPING = (
    *("model", "data", "agent", "cost", "importance", "recovery", "refit", "start", "budget", "plan", "weights"),
    *("seed", "exclude", "reward", "reward_split", "reward_images", "max_steps", "min_keep", "divisor", "keep_ends"),
    "trainer.precision",
)
"""Settings that shape a search; a resumed one must have the same."""


def fit_agent(module: SearchModule, run: Run, protocol: Protocol) -> None:
    """Runs a search on the run's devices and writes its state; goes on where an earlier run was stopped."""
    state = SearchState(run.folder)
    trainer = run.trainer(
        [SearchProgress(protocol), state],
        max_epochs=module.iterations,
        enable_progress_bar=False,
        log_every_n_steps=1,
        precision="32-true",  # the agent is tiny, and its probability ratios want every bit
    )
    if state.found:
        log.info("resuming from %s", state.found)
    trainer.fit(module, ckpt_path=state.found, weights_only=True)


def shaping(run: Run) -> dict[str, Any]:
    """The settings that shape a search."""
    return run.select(_shaping(run))


def check_stage(run: Run) -> bool:
    """Whether a stage has ended.

    Raises:
        UserError: If it was with other settings.
    """
    if not (run.folder / "results.json").is_file():
        return False
    names = [*_shaping(run), "episodes", "finalists", "finish", "finetune"]
    require_same(select(settings_in(run.folder), names), run.select(names))
    return True


def check_resume(run: Run) -> None:
    """Raise UserError if the folder holds a search with other settings; before anything of it is touched."""
    checkpoint = SearchState(run.folder).found
    if checkpoint:
        require_same(read_checkpoint(checkpoint)["search"]["settings"], shaping(run))


def _shaping(run: Run) -> list[str]:
    return [*_SHAPING, *(["base"] if run.settings["weights"] is None else [])]
