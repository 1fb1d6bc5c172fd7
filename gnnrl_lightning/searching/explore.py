"""A search from beginning to end in one process, without files."""

import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from gnnrl_lightning.core.ranks import agreed
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.searching.agents.protocol import Agent
from gnnrl_lightning.searching.callbacks import SearchProgress
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.searching.preparation import Preparation
from gnnrl_lightning.training.noise import NOISE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Explored:
    """A search that has ended.

    Attributes:
        prepared: What was searched.
        evaluator: What gave its rewards.
        module: Its history.
        widths: The winner's, [G].
        reward: The winner's, on the whole reward split.
    """

    prepared: Preparation
    evaluator: Evaluator
    module: SearchModule
    widths: Tensor
    reward: float

    @property
    def opened(self) -> Tensor | None:
        """The best of the closed-form plans that the search opened with, [G]; None if it did not."""
        if self.prepared.task.plans is None:
            return None
        tried = self.prepared.env.rewards
        rewards = {name: tried.get(tuple(widths.tolist())) for name, widths in self.evaluator.plans.items()}
        found = {name: reward for name, reward in rewards.items() if reward is not None}
        return self.evaluator.plans[max(found, key=found.__getitem__)] if found else None


def explore(
    prepared: Preparation,
    agent: Agent,
    evaluator: Evaluator,
    fit: Callable[[SearchModule], None],
    shaping: dict[str, Any] | None = None,
) -> Explored:
    """Lets an agent search, from the best of the closed-form plans where it can, and chooses among the best it found.

    Args:
        prepared: The search.
        agent: Of its task.
        evaluator: Gives the rewards.
        fit: Runs the search under a trainer.
        shaping: Settings that a search which is resumed must have had.
    """
    settings, plans, env = prepared.settings, prepared.task.plans, prepared.env
    module = SearchModule(agent, prepared.env, settings.episodes, settings.seed, shaping or {}, plans)
    if plans is not None and not hasattr(agent, "begin"):
        log.info("agent=%s starts as its paper says: it cannot begin at a plan", type(agent).__name__)
    fit(module)
    if len({row["reward"] for row in module.history}) == 1 and len(env.rewards) > 1:
        log.warning(
            "all %d networks have the same reward, so nothing was chosen between them; take rewards on data that the "
            "network was not trained on, or reward=kl", len(env.rewards),
        )  # fmt: skip
    widths, reward = agreed(evaluator.winner(module.finalists(settings.finalists), module.best["reward"]))
    return Explored(prepared, evaluator, module, widths, reward)


def fit_here(module: SearchModule, device: torch.device, protocol: Protocol) -> None:
    """Runs a search on one device, without files.

    Raises:
        KeyboardInterrupt: If the user stops it, where Lightning would end the process.
    """
    with quiet():
        trainer = L.Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            max_epochs=module.iterations,
            logger=False,
            callbacks=[SearchProgress(protocol)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(module)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise


def seed_all(seed: int) -> None:
    """As Lightning's `seed_everything`, but for what that leaves in the caller's environment."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's words on hardware and products."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in NOISE:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
