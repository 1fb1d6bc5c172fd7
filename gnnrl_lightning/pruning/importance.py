"""Channel importance: which channels of a group go first."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.pruning.program import folded_tensors
from gnnrl_lightning.topology import Topology


class Magnitude:
    """Norm of the filters that write a channel (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017).

    A coupled channel is written by several layers: each layer's norms are divided by their mean first, so that no layer
    outweighs the others by its scale, and then averaged. Channels that no filter writes are judged by what reads them.

    Args:
        p: Order of the norm, 1 or 2.
    """

    def __init__(self, p: int):
        if p not in (1, 2):
            raise ValueError(f"importance.p={p} must be 1 or 2.")
        self.p = p

    def __repr__(self) -> str:
        return f"Magnitude(p={self.p})"

    @torch.no_grad()
    def __call__(self, model: nn.Module, topology: Topology) -> list[Tensor]:
        """Scores every channel.

        Returns:
            One tensor of scores a group, [width]; higher is more important.
        """
        written, has_writer = self._mean_norms(model, topology, reading=False)
        read, _ = self._mean_norms(model, topology, reading=True)
        scores = torch.where(has_writer, written, read)
        return list(scores.split([group.width for group in topology.groups]))

    def _mean_norms(self, model: nn.Module, topology: Topology, reading: bool) -> tuple[Tensor, Tensor]:
        """Mean over the weights that read (or write) a channel of its relative norm, and if there are any, [slots]."""
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
                norms, slots = blocks.flatten(1).norm(p=self.p, dim=1), slots.flatten()
            else:
                norms = weight.movedim(dimension, 0).flatten(1).norm(p=self.p, dim=1)
            norms = norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
            owned = slots >= 0
            total.index_add_(0, slots[owned], norms[owned])
            layers.index_add_(0, slots[owned], torch.ones_like(norms[owned]))
        return total / layers.clamp(min=1), layers > 0


def most_important(scores: list[Tensor], widths: Tensor) -> list[list[int]]:
    """The channels that stay: the `widths[g]` highest scores of each group, ascending. Ties keep the lower number."""
    kept = []
    for score, width in zip(scores, widths.tolist(), strict=True):
        order = torch.argsort(score, descending=True, stable=True)
        kept.append(sorted(order[:width].tolist()))
    return kept
