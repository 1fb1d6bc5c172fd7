"""Importance by the filters alone: their norm, or how far they are from the others of their layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.pruning.importance.ranking import Ranking
from gnnrl_lightning.pruning.program import folded_tensors
from gnnrl_lightning.task import Task
from gnnrl_lightning.topology import Topology


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


def magnitude(model: nn.Module, topology: Topology, p: int) -> list[Tensor]:
    """Relative norm of order p of the filters of every channel, one tensor a group, [width]."""
    return by_filters(model, topology, lambda filters: filters.norm(p=p, dim=1))


@torch.no_grad()
def by_filters(model: nn.Module, topology: Topology, score: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Scores every channel by the filters that write it.

    Our reading, as the papers that score filters say nothing of coupled channels: each layer that writes a channel
    scores it, divided by the layer's mean, so that none outweighs the others by its scale; the average counts. Channels
    that no filter writes are judged by what reads them.

    Args:
        model: The network.
        topology: Its channel groups.
        score: From all filters of one layer, flat [N, D], to one number each that is not negative, [N].

    Returns:
        One tensor of scores a group, [width]; higher is more important.
    """
    scores, has_writer = _mean_scores(model, topology, score, reading=False)
    if not has_writer.all():
        scores = torch.where(has_writer, scores, _mean_scores(model, topology, score, reading=True)[0])
    return list(scores.split([group.width for group in topology.groups]))


def _mean_scores(
    model: nn.Module, topology: Topology, score: Callable[[Tensor], Tensor], reading: bool
) -> tuple[Tensor, Tensor]:
    """Mean over the weights that read (or write) a channel of its relative score, and if there are any, [slots]."""
    total = torch.zeros(len(topology.group_of_slot))
    layers = torch.zeros_like(total)
    parameters = {**dict(model.named_parameters()), **folded_tensors(model, topology)}
    for (name, dimension), slots in topology.slots.items():
        if name not in parameters or parameters[name].dim() < 2:
            continue
        if (topology.labels.readers.get(name) == dimension) != reading:
            continue
        weight = parameters[name].detach().float().cpu()
        if slots.dim() == 2:  # a grouped convolution: each block of its rows reads channels of its own
            blocks = weight.unflatten(0, (len(slots), -1)).transpose(1, 2).flatten(0, 1)
            scores, slots = score(blocks.flatten(1)), slots.flatten()
        else:
            scores = score(weight.movedim(dimension, 0).flatten(1))
        scores = scores / scores.mean().clamp(min=torch.finfo(scores.dtype).tiny)
        owned = slots >= 0
        total.index_add_(0, slots[owned], scores[owned])
        layers.index_add_(0, slots[owned], torch.ones_like(scores[owned]))
    return total / layers.clamp(min=1), layers > 0
