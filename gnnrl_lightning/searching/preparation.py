"""A search that is ready to begin, by command or from Python; the network may still have to be trained."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.evaluation.evaluator import Evaluator, Recovery
from gnnrl_lightning.evaluation.judge import Judge
from gnnrl_lightning.evaluation.reward import Score
from gnnrl_lightning.importance.ranking import Importance
from gnnrl_lightning.importance.reconstruction import ReconstructionError
from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.problem.problem import Problem
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.reconstruction.reconstruction import Reconstruction
from gnnrl_lightning.settings import SearchSettings


@dataclass
class Preparation:
    """Everything that a search needs but its agent.

    Attributes:
        problem: The network and the budget.
        env: Where agents prune it.
        settings: Of the search.
        importance: Which channels of a group go first.
        recovery: What a pruned network may do before its reward is taken.
        training: Inputs and targets for these two and for the closed forms.
        reward: Those that rewards are taken on.
        episodes: How many networks may be proposed, by each rank.
    """

    problem: Problem
    env: PruningEnv
    settings: SearchSettings
    importance: Importance
    recovery: Recovery
    training: tuple[Samples, Tensor]
    reward: tuple[Samples, Tensor]
    episodes: int
    _evaluator: Evaluator | None = field(default=None, init=False)

    @cached_property
    def task(self) -> Task:
        """What agents may know; its scores and plans are there once `make_evaluator` was called."""
        prunable, settings = self.problem.prunable, self.settings
        closed_form = None
        if uses_closed_form(settings, self.importance):
            closed_form = Reconstruction(prunable.model, prunable.topology, self.training[0], settings.refit)
        return self.env.task(
            self._scores,
            self.episodes,
            reconstruction=closed_form,
            plans=self._plans if settings.start == "closed_form" else None,
        )

    def make_evaluator(
        self, device: torch.device, batch_size: int, precision: str = "32-true", score: Score | None = None
    ) -> Evaluator:
        """Ranks the channels of the trained network; rewards can be taken from now on.

        Args:
            device: Where networks run.
            batch_size: Inputs a forward pass.
            precision: The trainer's.
            score: What a reward is in place of `settings.reward`.
        """
        prunable, settings = self.problem.prunable, self.settings
        unpruned = prunable.original if settings.reward == "kl" else None
        judge = Judge(self.reward, settings.reward_images, batch_size, device, precision, unpruned, score)
        self._evaluator = Evaluator(
            prunable.model, self.task, prunable.remove, self.importance, self.recovery, self.training, judge
        )
        self.env.evaluate = self._evaluator
        return self._evaluator

    def _scores(self) -> list[Tensor]:
        assert self._evaluator is not None, "scores are known once there is an evaluator"
        return self._evaluator.ranking.scores

    def _plans(self) -> dict[str, Tensor]:
        assert self._evaluator is not None, "plans are known once there is an evaluator"
        return self._evaluator.plans


def uses_closed_form(settings: SearchSettings, importance: Importance) -> bool:
    """Whether a search wants the statistics of the readers."""
    return settings.refit.enabled or settings.start == "closed_form" or isinstance(importance, ReconstructionError)


def wanted_images(settings: SearchSettings, importance: Importance, recovery: Recovery) -> dict[str, int | None]:
    """How many training images each part of a search wants, by its setting; None: all."""
    wanted = {"recovery.images": recovery.images, "importance.images": importance.images}
    return wanted | ({"refit.images": settings.refit.images} if uses_closed_form(settings, importance) else {})
