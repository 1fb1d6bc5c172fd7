"""What search.py is asked, checked before anything is trained."""

import copy
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from gnnrl_lightning.app.agent import check_resume
from gnnrl_lightning.app.config import SearchConfig, TrainConfig
from gnnrl_lightning.app.export import check_formats
from gnnrl_lightning.app.unlabelled import check_search
from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.data import ImageDataModule, Preprocessing
from gnnrl_lightning.data.held_out import TRAIN
from gnnrl_lightning.library.components import build
from gnnrl_lightning.models.factory import ModelSpec, check_model, create_model, preprocessing_of
from gnnrl_lightning.problem.problem import Problem, check_stages, make_prunable, prune_again
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.saved import load_pruned
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.training.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """One stage of a search.

    Attributes:
        run: Its folder and devices.
        cfg: The settings.
        spec: How the network is built.
        data: Its images, set up.
        earlier: The plan of the stage before, if there was one.
        problem: The network and the budget.
    """

    run: Run
    cfg: SearchConfig
    spec: ModelSpec
    data: ImageDataModule
    earlier: PruningPlan | None
    problem: Problem

    @property
    def original(self) -> nn.Module:
        """The unpruned network."""
        return self.problem.prunable.original

    def plan_fields(self, **about: Any) -> dict[str, Any]:
        """What its plan holds beside the channels, by the names of the fields."""
        data = self.data
        return {
            "model": {"spec": self.spec.to_dict(), "num_classes": data.num_classes, "image_size": data.image_size},
            "data": {
                "config": self.cfg.data,
                "preprocessing": asdict(data.preprocessing),
                "reward_split": data.reward_split,
            },
            "about": about,
        }


def ask(run: Run, cfg: SearchConfig) -> Asked:
    """Checks the settings, prepares the images, builds and traces the network.

    Args:
        run: In whose folder nothing changes yet.
        cfg: The settings.

    Raises:
        UserError: If something is at fault.
    """
    check_resume(run)
    check_search(cfg)
    check_formats(cfg.export)
    spec = ModelSpec.from_config(cfg.model)
    check_model(spec, cfg.data["num_classes"], cfg.weights)
    earlier = PruningPlan.load(cfg.plan) if cfg.plan else None  # before anything is downloaded
    data = data_of(cfg, preprocessing_of(spec, cfg.weights), cfg.reward_split)
    data.prepare_data()
    data.setup()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    original = create_model(spec, data.num_classes, data.image_size, cfg.weights)
    prunable = make_prunable(original, torch.zeros(1, 3, data.image_size, data.image_size), cfg)
    if cfg.stages > 1 and earlier is None:
        check_stages(prunable, cfg)
    if earlier is not None:
        if (earlier.model or {}).get("spec") != spec.to_dict():
            raise UserError(f"plan={cfg.plan} is not for {spec.setting}; give the network that it was made for.")
        left = load_pruned(Path(str(cfg.plan)).parent, copy.deepcopy(original))
        prunable = prune_again(prunable, left, earlier, cfg)
    log.info("channels are removed by %s", "surgery" if prunable.remove is prune else "rewriting the traced graph")
    cost = build(cfg.cost, topology=prunable.unpruned, network=prunable.deployed, device=run.device)
    return Asked(run, cfg, spec, data, earlier, Problem(prunable, cost, cfg.budget))


def data_of(
    cfg: SearchConfig | TrainConfig, preprocessing: Preprocessing, reward_split: str = TRAIN
) -> ImageDataModule:
    """The data module, checked before anything is downloaded or decoded."""
    data: ImageDataModule = build(cfg.data, preprocessing=preprocessing, seed=cfg.seed, reward_split=reward_split)
    data.check()
    return data
