"""Importance by what the layers that read a channel lose without it, after they are refitted."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.problem.task import Task


class ReconstructionError:
    """Channels go one after another, each time the one that the network's scores miss least; see `Selection`.

    The score of a channel is the error of its group once it is gone, beside all that went before it: what the readers
    of the group lose after they are refitted (or as they are, with refit.enabled=false), weighted by how much the
    network's scores feel it. So scores of all groups are on one scale, and no labels are looked at.
    """

    images: int | None = 0
    """The statistics come with the task."""

    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Ranks by backward elimination."""
        assert task.reconstruction is not None, "images come with the search"
        reconstruction = task.reconstruction.of(model)
        orders = reconstruction.orders
        scores = []
        for order, curve in zip(orders, reconstruction.curves(orders), strict=True):
            score = torch.zeros(len(order), dtype=torch.float64)
            score[order] = _ascending(curve[:-1].flip(0))
            scores.append(score)
        return Ranking(scores)


def _ascending(errors: Tensor) -> Tensor:
    """Errors that do not fall as strictly rising ones, so that ties do not change the order."""
    steps = torch.arange(1, len(errors) + 1, dtype=torch.float64)
    return errors * (1 + 1e-12 * steps) + torch.finfo(torch.float32).tiny * steps
