"""The random baseline: any channels."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import require_whole
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.problem.task import Task


class RandomImportance:
    """Draws every score from U(0, 1): the baseline that an importance must beat.

    Args:
        seed: Equal seeds give equal scores.
    """

    images: int | None = 0

    def __init__(self, seed: int):
        require_whole("importance.seed", seed, 0)
        self.seed = seed

    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Ranks by chance; neither the network nor an image is looked at."""
        generator = torch.Generator().manual_seed(self.seed)
        return Ranking([torch.rand(group.width, generator=generator) for group in task.topology.groups])
