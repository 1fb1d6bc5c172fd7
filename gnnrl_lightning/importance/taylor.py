"""Importance by the first-order change of the loss."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.importance.batches import LooksAtImages, batches
from gnnrl_lightning.importance.gates import mean_over_images
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.problem.task import Task


class Taylor(LooksAtImages):
    """Mean over images of |∂L_n/∂m_i| (Molchanov et al., "Pruning CNNs for Resource Efficient Inference", ICLR 2017).

    That is what the loss changes by, to first order, when a channel goes. The paper divides the scores of each layer by
    their l2 norm, so that layers can be compared. Our reading: those of each group; and the gradients of all layers
    that read a channel are in the sum before its size is taken.
    """

    needs_labels = True

    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Ranks by the size of the gradients."""
        parts = batches(images, labels, self.batch_size, "taylor")
        groups = mean_over_images(model, task.topology, parts, torch.abs).split(task.topology.full_widths().tolist())
        return Ranking([scores / scores.norm().clamp(min=torch.finfo(scores.dtype).tiny) for scores in groups])
