"""Importance by the rank of the feature maps."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.importance.batches import LooksAtImages, batches
from gnnrl_lightning.importance.gates import read_slots
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.pruning.program import Layer, run, tensors_of


class HighRank(LooksAtImages):
    """Mean over images of the rank of a channel's feature map (Lin et al., "HRank", CVPR 2020).

    Our reading: the maps are those that a channel gives its readers, behind normalisation and activation; where several
    layers are given maps of it, each layer's ranks are divided by their mean and then averaged. A number, as linear
    layers read, is a map of one pixel.
    """

    @torch.no_grad()
    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Ranks by the maps' rank."""
        topology = task.topology
        slots_of = read_slots(topology)
        ranks: dict[str, Tensor] = {}  # of what each operation reads, their sum over images
        given: dict[fx.Node, str] = {}  # what several read is one map, and counts once

        def read(node: fx.Node, activation: Tensor, layer: Layer) -> Any:
            name = given.setdefault(node.all_input_nodes[0], node.name)
            slots = slots_of[name]
            if name == node.name and (slots >= 0).any():
                ranks[name] = ranks.get(name, 0) + _ranks(activation, slots).cpu()
            return layer(activation)

        tensors = tensors_of(model)
        for batch, _ in batches(images, labels, self.batch_size, "hrank"):
            run(tensors, topology, batch, read)
        total = torch.zeros(len(topology.group_of_slot))
        layers = torch.zeros_like(total)
        for name, rank in ranks.items():
            slots, relative = slots_of[name], rank / rank.mean().clamp(min=torch.finfo(rank.dtype).tiny)
            owned = slots >= 0
            total.index_add_(0, slots[owned], relative[owned])
            layers.index_add_(0, slots[owned], torch.ones_like(relative[owned]))
        return Ranking(list((total / layers.clamp(min=1)).split(topology.full_widths().tolist())))


def _ranks(activation: Tensor, slots: Tensor) -> Tensor:
    """Ranks of an activation's maps, their sum over images; in the shape of its slots."""
    channels = [d for d, size in enumerate(slots.shape) if size > 1]
    if activation.dim() == 4 and len(channels) <= 1:
        dimension = channels[0] if channels else 1
        ranks = torch.linalg.matrix_rank(activation.movedim(dimension, 1)).float().sum(0)
        return (ranks if channels else ranks.mean()).view(slots.shape)
    others = [d for d in range(activation.dim()) if d not in channels]
    return (activation != 0).float().mean(others, keepdim=True) * len(activation)
