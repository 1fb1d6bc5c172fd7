"""A search from beginning to end in one process, without files."""

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from torch import Tensor

from gnnrl_lightning.core.ranks import agreed
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.protocol import SCORE, Protocol
from gnnrl_lightning.searching.agents.protocol import Agent
from gnnrl_lightning.searching.callbacks import SearchProgress
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.searching.preparation import Preparation
from gnnrl_lightning.training.noise import NOISE


@dataclass(frozen=True)
class Explored:
    """A search that has ended.

    Attributes:
        prepared: What was searched.
        evaluator: What gave its rewards.
        module: Its history.
        widths: The winner's, [G].
    """

    prepared: Preparation
    evaluator: Evaluator
    module: SearchModule
    widths: Tensor


def explore(prepared: Preparation, agent: Agent, evaluator: Evaluator, device: torch.device) -> Explored:
    """Lets an agent search.

    Args:
        prepared: The search.
        agent: Of its task.
        evaluator: Gives the rewards.
        device: Where the agent learns.
    """
    settings = prepared.settings
    module = SearchModule(agent, prepared.env, settings.episodes, settings.seed, {}, prepared.task.plans)
    with quiet():
        trainer = L.Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            max_epochs=module.iterations,
            logger=False,
            callbacks=[SearchProgress(Protocol(settings.reward if evaluator.judge.score is None else SCORE))],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(module)
        except SystemExit as error:  # Lightning ends the process where the user stops it; here the caller is told
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
    widths, _ = agreed(evaluator.winner(module.finalists(settings.finalists), module.best["reward"]))
    return Explored(prepared, evaluator, module, widths)


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
