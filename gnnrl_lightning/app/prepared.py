"""A search that is ready to begin: environment, agent, images; the network may still have to be trained."""

import logging
from dataclasses import dataclass

import lightning as L
from torch import Tensor

from gnnrl_lightning.app.asked import Asked
from gnnrl_lightning.app.config import build
from gnnrl_lightning.app.unlabelled import label
from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.numbers import millions
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.data import ImageDataModule
from gnnrl_lightning.evaluation.evaluator import Evaluator, Recovery
from gnnrl_lightning.importance.ranking import Importance
from gnnrl_lightning.importance.reconstruction import ReconstructionError
from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.reconstruction.reconstruction import Reconstruction
from gnnrl_lightning.searching.agents.protocol import Agent
from gnnrl_lightning.training.fitting import ranks_of

log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """A search that is ready to begin.

    Attributes:
        asked: What is asked.
        importance: Which channels of a group go first.
        recovery: What a pruned network may do before its reward is taken.
        reward: Images and labels of the reward split.
        training: Those for importance, recovery and closed forms.
        env: Where agents prune.
        task: What they know.
        agent: The one that searches.
    """

    asked: Asked
    importance: Importance
    recovery: Recovery
    reward: tuple[Samples, Tensor]
    training: tuple[Samples, Tensor]
    env: PruningEnv
    task: Task
    agent: Agent

    def start(self) -> Evaluator:
        """Ranks the channels of the trained network; rewards can be taken from now on."""
        asked, cfg = self.asked, self.asked.cfg
        evaluator = Evaluator(
            asked.problem.prunable.model,
            self.task,
            asked.problem.prunable.remove,
            self.importance,
            self.recovery,
            self.reward,
            self.training,
            min(cfg.reward_images or len(self.reward[1]), len(self.reward[1])),
            asked.data.eval_batch_size,
            asked.device,
            asked.config.trainer.precision,
            asked.original if cfg.reward == "kl" else None,
        )
        self.env.evaluate = evaluator
        return evaluator


def prepare(asked: Asked) -> Prepared:
    """Makes the parts of a search; the original network may not be trained yet.

    Args:
        asked: What is asked.

    Raises:
        UserError: If a setting of a part is at fault, or the budget cannot be met.
    """
    config, cfg, problem, data = asked.config, asked.cfg, asked.problem, asked.data
    importance, recovery = build(config.importance), build(config.recovery)
    env = problem.environment(_not_begun, cfg.max_steps)
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
        label(data, asked.original, asked.device)
    if hasattr(importance, "check"):
        importance.check(problem.topology)
    closed_form = cfg.refit.enabled or cfg.start == "closed_form" or isinstance(importance, ReconstructionError)
    wanted: dict[str, int | None] = {"recovery.images": recovery.images, "importance.images": importance.images}
    training = data.tensors(
        "train", _needed(wanted | ({"refit.images": cfg.refit.images} if closed_form else {}), data)
    )
    # Seeded anew, so that the agent starts alike whether the base network is trained now or comes from a file.
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    task = env.task(
        lambda: _begun(env).ranking.scores,
        -(-cfg.episodes // ranks_of(config)),
        reconstruction=Reconstruction(problem.prunable.model, problem.topology, training[0], cfg.refit)
        if closed_form
        else None,
        plans=(lambda: _begun(env).plans) if cfg.start == "closed_form" else None,
    )
    agent = build(config.agent, task=task)
    return Prepared(asked, importance, recovery, data.tensors("reward"), training, env, task, agent)


def _needed(wanted: dict[str, int | None], data: ImageDataModule) -> int:
    """How many training images the parts of a search want together; None is all of them."""
    available = len(data.splits["train"].labels)
    for name, number in wanted.items():
        if number is not None and number > available:
            log.info("%s=%d: only %d training images there are; all are taken", name, number, available)
    return min(max(available if number is None else number for number in (1, *wanted.values())), available)


def _not_begun(widths: Tensor) -> float:
    raise AssertionError("rewards are taken once the search has begun")


def _begun(env: PruningEnv) -> Evaluator:
    assert isinstance(env.evaluate, Evaluator)
    return env.evaluate
