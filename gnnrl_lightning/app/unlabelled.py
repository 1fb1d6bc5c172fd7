"""Images without labels (`data.labels=false`): what can be done with them, and what stands in for the labels."""

import torch
from rich.progress import track
from torch import nn

from gnnrl_lightning.app.config import SearchConfig, TrainConfig
from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.layout import to_fastest_layout
from gnnrl_lightning.data import ImageDataModule
from gnnrl_lightning.library.components import target


def check_search(cfg: SearchConfig) -> None:
    """Before any work.

    Raises:
        UserError: If the images have no labels and something of the search needs them.
    """
    if _labelled(cfg):
        return
    tuned = cfg.finetune.epochs > 0 and cfg.finetune.max_steps != 0
    needing = {
        f"reward={cfg.reward}": (cfg.reward != "kl", "add reward=kl"),
        "weights=null": (cfg.weights is None, "give the trained network, weights=<file> or weights=default"),
        f"finetune.distill={cfg.finetune.distill:g}": (
            tuned and cfg.finetune.distill < 1,
            "add finetune.epochs=0, or finetune.distill=1 to learn from the unpruned network's scores alone",
        ),
    }
    for group, instead in {
        "importance": "importance=l1, or another that needs none",
        "recovery": "recovery=bn",
    }.items():
        kind = target(getattr(cfg, group)["_target_"])
        needing[f"the {group} {kind.__name__}"] = (getattr(kind, "needs_labels", False), f"add {instead}")
    for setting, (needs, instead) in needing.items():
        if needs:
            raise UserError(f"data.labels=false, but {setting} needs labels; {instead}.")


def check_training(cfg: TrainConfig) -> None:
    """Before any work.

    Raises:
        UserError: If the images have no labels and there is no other network to learn from alone.
    """
    if not _labelled(cfg) and (cfg.teacher is None or cfg.fit.distill < 1):
        raise UserError(
            f"data.labels=false, but fit.distill={cfg.fit.distill:g} and teacher={cfg.teacher} need labels; add "
            f"teacher=<weights of the unpruned network> fit.distill=1 to a plan=…, or give labelled images with data=…."
        )


def label(data: ImageDataModule, network: nn.Module, device: torch.device) -> None:
    """Sets the labels of all images to what the unpruned network says, so that accuracy is agreement with it."""
    network = network.to(device).eval()
    for split, images in data.splits.items():
        layout: torch.memory_format | None = None
        said = []
        with torch.no_grad():
            for batch, _ in track(data.evaluation_loader(split), f"labelling {split}", transient=True):
                layout = layout or to_fastest_layout(network, batch[:2].to(device))
                said.append(network(batch.to(device, memory_format=layout)).argmax(1).cpu())
        images.labels = torch.cat(said)


def _labelled(cfg: SearchConfig | TrainConfig) -> bool:
    return bool(cfg.data.get("labels", True))
