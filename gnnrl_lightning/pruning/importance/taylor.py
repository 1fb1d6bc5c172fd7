"""Importance by the first-order change of the loss."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.data.preprocessing import HeldImages
from gnnrl_lightning.pruning.importance.batches import batches, require_images
from gnnrl_lightning.pruning.importance.gates import gate_gradients
from gnnrl_lightning.pruning.importance.ranking import Ranking
from gnnrl_lightning.task import Task


class Taylor:
    """Mean over images of |∂L_n/∂m_i| (Molchanov et al., "Pruning CNNs for Resource Efficient Inference", ICLR 2017).

    That is what the loss changes by, to first order, when a channel goes. The paper divides the scores of each layer by
    their l2 norm, so that layers can be compared. Our reading: those of each group; and the gradients of all layers
    that read a channel are in the sum before its size is taken.

    Args:
        images: Training images to look at, at least 1; None: all.
        batch_size: Images a pass.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(self, images: int | None, batch_size: int):
        require_images(images, batch_size)
        self.images = images
        self.batch_size = batch_size

    def __call__(self, model: nn.Module, task: Task, images: HeldImages, labels: Tensor) -> Ranking:
        """Ranks by the size of the gradients."""
        total = torch.zeros(len(task.topology.group_of_slot))
        for batch, classes in batches(images, labels, self.batch_size, "taylor"):
            total += gate_gradients(model, task.topology, batch, classes).abs().sum(0).cpu()
        groups = (total / len(labels)).split(task.topology.full_widths().tolist())
        return Ranking([scores / scores.norm().clamp(min=torch.finfo(scores.dtype).tiny) for scores in groups])
