"""Supervised training: of a base network from scratch, or of a pruned one."""

import copy
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from gnnrl_lightning.settings import FitConfig
from gnnrl_lightning.training.checkpoints import require_same

Batch = tuple[Tensor, Tensor]
Curve = list[dict[str, float]]
"""How a training went: {"images": training images seen, "top1": top-1 in % on the reward split} of each validation."""


def distilled(loss: Tensor, scores: Tensor, said: Tensor, share: float, temperature: float) -> Tensor:
    """A loss of which a share is the distance from a teacher's scores (Hinton et al. 2015).

    Args:
        loss: On the labels.
        scores: The network's, [B, classes].
        said: The teacher's, [B, classes].
        share: In [0, 1].
        temperature: What both scores are divided by; the distance is multiplied with its square, which keeps the size
            of its gradient.
    """
    target = F.log_softmax(said / temperature, 1)
    distance = F.kl_div(F.log_softmax(scores / temperature, 1), target, reduction="batchmean", log_target=True)
    return (1 - share) * loss + share * temperature**2 * distance


class SupervisedModule(L.LightningModule):
    """Cross-entropy, SGD with momentum, and a cosine schedule to 0 over the whole training.

    Remembers how every validation on the reward split went, `curve`, and the weights of the best, `best`.

    Args:
        model: The network; trained in place.
        num_classes: Of its output.
        stage: Prefix of its metrics: base or finetune.
        settings: Learning rate, augmentation and so on.
        seed: Of augmentation and dropout.
        teacher: A network to learn from (Hinton et al. 2015, with the loss's share `settings.distill`).
        configured: Settings that a resumed training must share.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        stage: str,
        settings: FitConfig,
        seed: int = 0,
        teacher: nn.Module | None = None,
        configured: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.model = model
        self.stage = stage
        self.settings = settings
        self.seed = seed
        self.configured = configured or {}
        self.top1 = MulticlassAccuracy(num_classes, average="micro")
        self.best: dict[str, Any] | None = None
        """Top-1 in % and weights of the best validation."""
        self.curve: Curve = []
        """Every validation."""
        self.images = 0
        """Training images seen, of all ranks together."""
        self.average: AveragedModel | None = None
        if settings.ema_decay is not None:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)
            self.average.requires_grad_(False)
        self._teacher = (copy.deepcopy(teacher).eval(),) if teacher else ()  # in a tuple: no part of the state
        mixed = [
            kind(alpha=alpha, num_classes=num_classes)
            for kind, alpha in ((v2.MixUp, settings.mixup), (v2.CutMix, settings.cutmix))
            if alpha
        ]
        self.layout = torch.contiguous_format
        """How images lie in memory; see `to_fastest_layout`."""
        self._mix = v2.RandomChoice(mixed) if mixed else None

    @property
    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts: the running average where there is one."""
        return self.average.module if self.average is not None else self.model

    @property
    def steps(self) -> int:
        """How many steps the training has in all."""
        most = int(self.trainer.estimated_stepping_batches)
        return most if self.settings.max_steps < 0 else min(most, self.settings.max_steps)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, num_classes] of images [B, 3, H, W]."""
        return self.model(images.to(memory_format=self.layout))

    def on_fit_start(self) -> None:
        """Puts the teacher where the network is."""
        for teacher in self._teacher:
            teacher.to(self.device)

    def on_train_start(self) -> None:
        """Ends a resumed training that had come to its end."""
        self._stop_at_the_end()

    def on_train_epoch_start(self) -> None:
        """Seeds what is random in this epoch, so that a resumed training sees the same."""
        torch.manual_seed(self.seed + 7919 * self.current_epoch + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        images, labels = batch if self._mix is None else self._mix(*batch)
        scores = self(images)
        loss = F.cross_entropy(scores, labels, label_smoothing=self.settings.label_smoothing)
        for teacher in self._teacher:
            with torch.no_grad():
                said = teacher(images.to(memory_format=self.layout))
            loss = distilled(loss, scores, said, self.settings.distill, self.settings.temperature)
        self.log(f"{self.stage}/train_loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the images and moves the running average."""
        self.images += len(batch[1]) * self.trainer.world_size
        if self.average is not None:
            self.average.update_parameters(self.model)
        self._stop_at_the_end()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy on the reward split."""
        images, labels = batch
        self.top1(self.evaluated(images.to(memory_format=self.layout)), labels)
        self.log(f"{self.stage}/reward_top1", self.top1, prog_bar=True, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        """Remembers how it went and the best; of equal ones the later."""
        top1 = 100 * float(self.top1.compute())
        self.curve.append({"images": self.images, "top1": round(top1, 4)})
        if self.best is None or top1 >= self.best["top1"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.evaluated.state_dict().items()}
            self.best = {"top1": top1, "weights": weights}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resumed training needs to end as the uninterrupted one."""
        state = {"best": self.best, "curve": self.curve, "images": self.images}
        checkpoint["fit"] = state | {"configured": self.configured}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up a training where it was left.

        Raises:
            UserError: If it was started with other settings.
        """
        state = checkpoint["fit"]
        require_same(state["configured"], self.configured)
        self.best, self.curve, self.images = state["best"], state["curve"], state["images"]

    def configure_optimizers(self) -> Any:
        """SGD, annealed at every step."""
        of = self.settings
        optimizer = torch.optim.SGD(self.model.parameters(), of.lr, momentum=of.momentum, weight_decay=of.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _stop_at_the_end(self) -> None:
        # Not the trainer's own max_steps: with it, a resumed training shuffles the images once more.
        if self.trainer.global_step >= self.steps:
            self.trainer.should_stop = True
