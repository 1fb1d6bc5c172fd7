"""The base network: from weights, or trained once and kept."""

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save
from torch import nn

from gnnrl_lightning.core.files import write_bytes
from gnnrl_lightning.core.ranks import agreed, alone
from gnnrl_lightning.data import ImageDataModule
from gnnrl_lightning.data.held_out import TRAIN
from gnnrl_lightning.models.factory import ModelSpec
from gnnrl_lightning.models.weights import load_weights
from gnnrl_lightning.settings import FitConfig
from gnnrl_lightning.training.fitting import fit
from gnnrl_lightning.training.run import Run

log = logging.getLogger(__name__)

_NOT_SHAPING = {
    "data": {"name", "epochs", "eval_batch_size", "num_workers", "labels"},
    "trainer": {"accelerator", "strategy", "deterministic"},
}
"""Settings that leave the trained network as it is; data.epochs does so through the training's own, and without
data.labels there is none."""


def train_base(
    model: nn.Module,
    spec: ModelSpec,
    program: str,
    data: ImageDataModule,
    settings: FitConfig,
    run: Run,
) -> None:
    """Trains a network that has no weights, or takes it from the cache of earlier runs.

    The cache knows a network by everything that shaped it: model, data, seed, training, precision and devices. Of jobs
    that start together one trains it, and the others wait. Ranks must have been joined.

    Args:
        model: The network; its weights are set in place.
        spec: What it is.
        program: What it computes, so that an edit of the user's own network is another network.
        data: What it is trained on.
        settings: How.
        run: For the rest.

    Raises:
        UserError: If training diverged; nothing is kept then.
    """
    shaped_by = {
        "model": spec.to_dict(),
        "program": program,
        **{group: _shaping(run, group) for group in _NOT_SHAPING},
        "seed": run.settings["seed"],
        "training": asdict(settings),
        # Only where it is not as ever, so that networks from before there was a choice are found.
        **({"reward_split": data.reward_split} if data.reward_split != TRAIN else {}),
    }
    digest = hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest()[:12]
    path = Path(run.settings["paths"]["cache"]) / f"{spec.name}-{data.name}-{digest}.safetensors"
    with alone(path):
        if agreed(path.is_file()):
            log.info("base network: %s, trained by an earlier run", path)
            load_weights(model, str(path))
            return
        log.info("base network: no weights given, so %s is trained on %s first", spec.name, data.name)
        L.seed_everything(run.settings["seed"], workers=True, verbose=False)
        checkpoint = run.folder / "checkpoints" / "base.ckpt"
        fit(model, data, settings, "base", run, checkpoint)
        save_weights(path, model)
        checkpoint.unlink(missing_ok=True)


@rank_zero_only
def save_weights(path: Path, model: nn.Module) -> None:
    """Writes a network's weights, at once or not at all."""
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    write_bytes(path, save(state))


def _shaping(run: Run, group: str) -> dict[str, Any]:
    return {name: value for name, value in run.settings[group].items() if name not in _NOT_SHAPING[group]}
