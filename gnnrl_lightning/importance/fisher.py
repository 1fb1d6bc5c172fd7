"""Importance by the second-order change of the loss, for the memory that a channel takes."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.importance.batches import LooksAtImages, batches
from gnnrl_lightning.importance.gates import mean_over_images
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.label_vectors import distinct


class Fisher(LooksAtImages):
    """1/2N Σ_n (∂L_n/∂m_i)² / memory, at once (Liu et al., "Group Fisher Pruning", ICML 2021, eq. 3 and 4).

    In a trained network the gradient of the whole loss is about 0 and its second derivative about the mean square of
    the images' gradients: so this is what the loss rises by when a channel goes, for each activation that it takes. The
    paper removes one channel at a time while it trains: importance=group_fisher. Our reading: all channels are scored
    at once, on the network as it is, and a channel's gate lies wherever a layer reads it, see `gate_gradients`.
    """

    needs_labels = True

    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Ranks by the mean square of the gradients."""
        parts = batches(images, labels, self.batch_size, "fisher")
        scores = mean_over_images(model, task.topology, parts, torch.square) / 2 / activations(task.topology)
        return Ranking(list(scores.split(task.topology.full_widths().tolist())))


def activations(topology: Topology) -> Tensor:
    """Elements of a channel in the outputs of all operations that write it, for one image, [slots]; at least 1.

    Those are convolutions, depth-wise ones too, linear layers and matrix products. How many elements a channel has does
    not depend on how many others there are, so this stays what it is while a network is pruned.
    """
    total = torch.zeros(len(topology.group_of_slot))
    for name in dict.fromkeys(product.node for product in topology.labels.products):
        labels = topology.labels.outputs[name]
        slots = topology.slots_of(distinct(labels))
        elements = labels.numel() / slots.numel() / topology.program.batch
        owned = slots[slots >= 0]
        total.index_add_(0, owned, torch.full(owned.shape, elements))
    return total.clamp(min=1)
