"""Importance by the distance from the other filters of a layer: those near the geometric median go first."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.pruning.channels import by_filters


class GeometricMedian:
    """Sum of the distances from a filter to all others of its layer.

    He et al., "Filter Pruning via Geometric Median" (CVPR 2019): what is near the geometric median the others can stand
    in for, however large it is. Coupled channels are judged together as `by_filters` does.
    """

    images: int | None = 0

    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Ranks by distance; no image is looked at."""
        return Ranking(by_filters(model, task.topology, lambda filters: torch.cdist(filters, filters).sum(1)))
