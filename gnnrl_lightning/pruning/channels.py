"""The channels of a group that matter most, by scores; by the filters' norm where nothing else is known."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gnnrl_lightning.pruning.program import folded_tensors
from gnnrl_lightning.topology import Topology


def most_important(scores: list[Tensor], widths: Tensor) -> list[list[int]]:
    """The channels that stay: the `widths[g]` highest scores of each group, ascending. Ties keep the lower number."""
    kept = []
    for score, width in zip(scores, widths.tolist(), strict=True):
        order = torch.argsort(score, descending=True, stable=True)
        kept.append(sorted(order[:width].tolist()))
    return kept


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
