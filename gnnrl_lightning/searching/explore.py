"""A search of a problem from beginning to end, in one process and without files."""

import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.evaluation.evaluator import Evaluator, Recovery
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.evaluation.reward import Score
from gnnrl_lightning.importance.ranking import Importance
from gnnrl_lightning.importance.reconstruction import ReconstructionError
from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.problem.problem import Problem
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.reconstruction.reconstruction import Reconstruction
from gnnrl_lightning.searching.agents.protocol import Agent
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.searching.progress import SearchProgress
from gnnrl_lightning.settings import SearchSettings


@dataclass(frozen=True)
class Explored:
    """A search that has ended.

    Attributes:
        evaluator: What gave its rewards.
        env: Where it took place.
        module: Its history.
        widths: The winner's, [G].
        reward: The winner's, on all reward images.
    """

    evaluator: Evaluator
    env: PruningEnv
    module: SearchModule
    widths: Tensor
    reward: float


def explore(
    problem: Problem,
    make_agent: Callable[[Task], Agent],
    importance: Importance,
    recovery: Recovery,
    training: tuple[Samples, Tensor],
    reward: tuple[Samples, Tensor],
    settings: SearchSettings,
    score: Score | None,
    batch_size: int,
) -> Explored:
    """Lets an agent search; the caller's random numbers are left alone.

    Args:
        problem: What is asked.
        make_agent: Makes the agent of the search.
        importance: Which channels of a group go first.
        recovery: What a pruned network may do before its reward is taken.
        training: Inputs and targets for these two and for the closed forms.
        reward: Those that rewards are taken on.
        settings: Of the search.
        score: What a reward is in place of `settings.reward`.
        batch_size: Inputs a forward pass.
    """
    prunable = problem.prunable
    device = next(prunable.original.parameters()).device
    evaluator: Evaluator  # stands when the first reward is asked for
    env = problem.environment(lambda widths: evaluator(widths), settings.max_steps)
    begins = settings.start == "closed_form"
    closed_form = settings.refit.enabled or begins or isinstance(importance, ReconstructionError)
    with isolate_rng(), _quiet():
        _seed(settings.seed)
        task = env.task(
            lambda: evaluator.ranking.scores,
            settings.episodes,
            reconstruction=Reconstruction(prunable.model, prunable.topology, training[0], settings.refit)
            if closed_form
            else None,
            plans=(lambda: evaluator.plans) if begins else None,
        )
        agent = make_agent(task)
        evaluator = Evaluator(
            prunable.model,
            task,
            prunable.remove,
            importance,
            recovery,
            reward,
            training,
            min(settings.reward_images or len(reward[0]), len(reward[0])),
            batch_size,
            device,
            unpruned=prunable.original if settings.reward == "kl" and score is None else None,
            score=score,
        )
        module = SearchModule(agent, env, settings.episodes, settings.seed, {}, task.plans)
        protocol = Protocol("score" if score is not None else settings.reward)
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
        _fit(trainer, module)
        widths, whole = evaluator.winner(module.finalists(settings.finalists), module.best["reward"])
    return Explored(evaluator, env, module, widths, whole)


def _seed(seed: int) -> None:
    """As Lightning's `seed_everything`, but for what that leaves in the environment."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _fit(trainer: L.Trainer, module: SearchModule) -> None:
    """Lightning ends the process where the user stops it; here the caller is told."""
    try:
        trainer.fit(module)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's words on hardware and products."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning's own
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
