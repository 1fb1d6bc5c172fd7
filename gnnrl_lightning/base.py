"""The base network: from weights, or trained once and kept."""

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save
from torch import nn

from gnnrl_lightning.config import FitConfig
from gnnrl_lightning.data import ImageDataModule
from gnnrl_lightning.files import write_bytes
from gnnrl_lightning.fitting import fit
from gnnrl_lightning.models.factory import ModelSpec
from gnnrl_lightning.models.weights import load_weights

log = logging.getLogger(__name__)


def train_base(
    model: nn.Module,
    spec: ModelSpec,
    data: ImageDataModule,
    settings: FitConfig,
    config: DictConfig,
    logger: list[Logger],
) -> Path:
    """Trains a network that has no weights, or takes it from the cache of earlier runs.

    The cache knows a network by everything that shaped it: model, data, seed and training.

    Args:
        model: The network; its weights are set in place.
        spec: What it is.
        data: What it is trained on.
        settings: How.
        config: For the rest.
        logger: Where metrics go.

    Returns:
        The file that holds its weights now.
    """
    shaped_by = {
        "model": spec.to_dict(),
        "data": OmegaConf.to_container(config.data, resolve=True),
        "seed": config.seed,
        "training": asdict(settings),
    }
    digest = hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest()[:12]
    path = Path(config.paths.cache) / f"{spec.name}-{data.name}-{digest}.safetensors"
    if path.is_file():
        log.info("base network: %s, trained by an earlier run", path)
        load_weights(model, str(path))
        return path
    log.info("base network: no weights given, so %s is trained on %s first", spec.name, data.name)
    L.seed_everything(config.seed, workers=True, verbose=False)
    fit(model, data, settings, "base", config, logger)
    save_weights(path, model)
    return path


@rank_zero_only
def save_weights(path: Path, model: nn.Module) -> None:
    """Writes a network's weights, at once or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_bytes(path, save(state))
