"""Supervised training: of a base network from scratch, or of a pruned one."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

Batch = tuple[Tensor, Tensor]


class SupervisedModule(L.LightningModule):
    """Cross-entropy, SGD with momentum, and a cosine schedule to 0 over the whole training.

    Args:
        model: The network; trained in place.
        num_classes: Of its output.
        stage: Prefix of its metrics: base or finetune.
        lr: Initial learning rate.
        momentum: Of SGD.
        weight_decay: L2 penalty.
    """

    def __init__(self, model: nn.Module, num_classes: int, stage: str, lr: float, momentum: float, weight_decay: float):
        super().__init__()
        self.model = model
        self.stage = stage
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.top1 = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, num_classes] of images [B, 3, H, W]."""
        return self.model(images.to(memory_format=torch.channels_last))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log(f"{self.stage}/train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy on the reward split."""
        images, labels = batch
        self.top1(self(images), labels)
        self.log(f"{self.stage}/reward_top1", self.top1, prog_bar=True, on_epoch=True)

    def configure_optimizers(self) -> Any:
        """SGD, annealed at every step."""
        optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
