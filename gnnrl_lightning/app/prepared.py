"""A search by command, ready to begin."""

import logging

import lightning as L

from gnnrl_lightning.app.asked import Asked
from gnnrl_lightning.app.unlabelled import label
from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.numbers import millions
from gnnrl_lightning.data import ImageDataModule
from gnnrl_lightning.library.components import build
from gnnrl_lightning.searching.agents.protocol import Agent
from gnnrl_lightning.searching.preparation import Preparation, wanted_images

log = logging.getLogger(__name__)


def prepare(asked: Asked) -> tuple[Preparation, Agent]:
    """Makes the parts of a search; the original network may not be trained yet.

    Args:
        asked: What is asked.

    Raises:
        UserError: If a setting of a part is at fault, or the budget cannot be met.
    """
    cfg, problem, data = asked.cfg, asked.problem, asked.data
    importance, recovery = build(cfg.importance), build(cfg.recovery)
    env = problem.environment(cfg.max_steps)
    if asked.earlier is not None and problem.cost_of(problem.topology.full_widths()) <= env.allowed:
        raise UserError(f"plan={cfg.plan} is within budget={cfg.budget:g} already; give a lower budget.")
    log.info(
        "budget %.2f: %s of %s %s; %d groups, %d channels",
        cfg.budget,
        millions(env.allowed),
        millions(env.full_cost),
        problem.cost.unit,
        len(problem.topology.groups),
        int(problem.topology.full_widths().sum()),
    )
    if not data.labelled:
        label(data, asked.original, asked.run.device)
    if hasattr(importance, "check"):
        importance.check(problem.topology)
    training = data.tensors("train", _needed(wanted_images(cfg, importance, recovery), data))
    # Seeded anew: how much was drawn until now depends on the network and its images.
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    episodes = -(-cfg.episodes // asked.run.ranks)
    prepared = Preparation(problem, env, cfg, importance, recovery, training, data.tensors("reward"), episodes)
    return prepared, build(cfg.agent, task=prepared.task)


def _needed(wanted: dict[str, int | None], data: ImageDataModule) -> int:
    """How many training images the parts of a search want together; None is all of them."""
    available = len(data.splits["train"].labels)
    for name, number in wanted.items():
        if number is not None and number > available:
            log.info("%s=%d: only %d training images there are; all are taken", name, number, available)
    return min(max(available if number is None else number for number in (1, *wanted.values())), available)
