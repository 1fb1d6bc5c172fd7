"""Importance by the filters alone: their norm, or how far they are from the others of their layer."""

from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.pruning.channels import magnitude


class Magnitude:
    """Norm of the filters that write a channel (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017).

    Coupled channels are judged together, see `by_filters`.

    Args:
        p: Order of the norm, 1 or 2.

    Raises:
        UserError: If the order is another.
    """

    images: int | None = 0

    def __init__(self, p: int):
        require_order(p)
        self.p = p

    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Ranks by norm; no image is looked at."""
        return Ranking(magnitude(model, task.topology, self.p))


def require_order(p: int) -> None:
    """Raise UserError unless the norm is the sum of sizes or the Euclidean one."""
    if p not in (1, 2):
        raise UserError(f"importance.p={p} must be 1 or 2.")
