"""Runs an agent's search under Lightning: a fresh one, or one that was stopped."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from gnnrl_lightning.app.config import SearchConfig
from gnnrl_lightning.core.files import write_text
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.searching.agents.protocol import Agent
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.searching.progress import SearchProgress, SearchState
from gnnrl_lightning.training.checkpoints import read_checkpoint, require_same, settings_of
from gnnrl_lightning.training.fitting import build_trainer

log = logging.getLogger(__name__)

_SHAPING = (
    *("model", "data", "agent", "cost", "importance", "recovery", "refit", "start", "budget", "plan", "weights"),
    *("seed", "exclude", "reward", "reward_split", "reward_images", "max_steps", "min_keep", "divisor", "keep_ends"),
    "trainer.precision",
)
"""Settings that shape a search; a resumed one must have the same."""


def run_agent(
    config: DictConfig,
    cfg: SearchConfig,
    agent: Agent,
    env: PruningEnv,
    folder: Path,
    logger: list[Logger],
    plans: Callable[[], dict[str, Tensor]] | None,
) -> SearchModule:
    """Lets the agent search, from the best of these plans where it can; goes on where an earlier run was stopped."""
    module = SearchModule(agent, env, cfg.episodes, cfg.seed, _settings(config), plans)
    state = SearchState(folder)
    trainer = build_trainer(
        config,
        logger,
        [SearchProgress(Protocol(cfg.reward)), state],
        max_epochs=module.iterations,
        enable_progress_bar=False,
        log_every_n_steps=1,
        precision="32-true",  # the agent is tiny, and its probability ratios want every bit
    )
    if plans is not None and not hasattr(agent, "begin"):
        log.info("agent=%s starts as its paper says: it cannot begin at a plan", type(agent).__name__)
    if state.found:
        log.info("resuming from %s", state.found)
    trainer.fit(module, ckpt_path=state.found, weights_only=True)
    return module


def check_stage(config: DictConfig, folder: Path) -> bool:
    """Whether a stage has ended.

    Raises:
        UserError: If it was with other settings.
    """
    if not (folder / "results.json").is_file():
        return False
    names = [*_SHAPING, "episodes", "finalists", "finish", "finetune", *(["base"] if config.weights is None else [])]
    then = OmegaConf.load(folder / "config.yaml")
    assert isinstance(then, DictConfig)
    require_same(settings_of(then, names), settings_of(config, names))
    return True


def has_ended(config: DictConfig, folder: Path) -> bool:
    """Whether the folder holds a finished run of these very settings, so that a sweep typed again only fills gaps."""
    told = folder / "config.yaml"
    if not (folder / "results.json").is_file() or not told.is_file():
        return False
    then, now = OmegaConf.to_container(OmegaConf.load(told)), OmegaConf.to_container(config, resolve=True)
    assert isinstance(then, dict) and isinstance(now, dict)
    elsewhere = {"paths": None, "logger": None}  # where it lies and is logged may change from start to start
    return then | elsewhere == now | elsewhere


def begin(config: DictConfig, folder: Path) -> None:
    """Writes the run's settings; results of other settings go, since they would pass for the results of these."""
    for name in ("results.json", "curves.json"):
        (folder / name).unlink(missing_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))


def check_resume(config: DictConfig, folder: Path) -> None:
    """Raise UserError if the folder holds a search with other settings; before anything of it is touched."""
    checkpoint = SearchState(folder).found
    if checkpoint:
        require_same(read_checkpoint(checkpoint)["search"]["settings"], _settings(config))


def _settings(config: DictConfig) -> dict[str, Any]:
    return settings_of(config, [*_SHAPING, *(["base"] if config.weights is None else [])])
