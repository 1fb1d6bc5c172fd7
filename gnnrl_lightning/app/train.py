"""The story of train.py: a plan's network fine-tuned, a base network trained, or either evaluated."""

import copy
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning as L
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from gnnrl_lightning import data as data_modules
from gnnrl_lightning.app.asked import data_of
from gnnrl_lightning.app.command import command, how_to_load
from gnnrl_lightning.app.config import TrainConfig, typed
from gnnrl_lightning.app.export import check_formats, check_saved, export
from gnnrl_lightning.app.run import open_run
from gnnrl_lightning.app.tracking import log_input, log_metrics, log_run, open_loggers
from gnnrl_lightning.app.unlabelled import check_training, label
from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.files import write_json
from gnnrl_lightning.data import ImageDataModule, Preprocessing
from gnnrl_lightning.data.held_out import HELD_OUT, TRAIN
from gnnrl_lightning.evaluation.measure import test_top1
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.models.factory import ModelSpec, check_model, create_model, preprocessing_of
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.saved import load_pruned, write_pruned
from gnnrl_lightning.report.card import write_card
from gnnrl_lightning.report.tables import top1_table
from gnnrl_lightning.training.base import save_weights
from gnnrl_lightning.training.fitting import fit
from gnnrl_lightning.training.run import Run
from gnnrl_lightning.training.supervised import Curve

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    """What train.py is asked.

    Attributes:
        run: Its folder and devices.
        cfg: The settings, with the images that the plan names.
        plan: Of a pruned network; None: a base network.
        spec: How the network is built.
        data: Its images, set up.
        unpruned: The network without the plan, with the weights given.
        model: What is trained or evaluated.
        teacher: The network that it learns from as well.
        protocol: What its numbers are.
    """

    run: Run
    cfg: TrainConfig
    plan: PruningPlan | None
    spec: ModelSpec
    data: ImageDataModule
    unpruned: nn.Module
    model: nn.Module
    teacher: nn.Module | None
    protocol: Protocol

    @property
    def stage(self) -> str:
        """base, finetune or evaluate."""
        return self.cfg.stage or ("finetune" if self.plan else "base")


def train(config: DictConfig) -> float:
    """Fine-tunes the network of a plan, trains a base network, or evaluates either; writes to the run's folder.

    Returns:
        Top-1 in % on the reward split.

    Raises:
        UserError: If the configuration is at fault.
    """
    asked = _ask(config)
    run, cfg, stage, data, model = asked.run, asked.cfg, asked.stage, asked.data, asked.model
    networks = {"before": copy.deepcopy(model), "after": model} if stage != "evaluate" else {"after": model}
    with open_loggers(run, stage) as logger:
        if asked.plan is not None:
            log_input(logger, Path(str(cfg.plan)).parent, f"{asked.spec.name}-{data.name}", asked.plan.about)
        curve: Curve = []
        if stage != "evaluate":
            checkpoint = run.folder / "checkpoints" / "last.ckpt"
            curve = fit(model, data, cfg.fit, stage, run, checkpoint, asked.teacher)
        # The test split is read here alone, after all choices.
        top1 = {
            name: {
                "reward": test_top1(network, data.val_dataloader(), run.device, f"{name}, reward split"),
                "test": test_top1(network, data.test_dataloader(), run.device, f"{name}, test split"),
            }
            for name, network in networks.items()
        }
        log_metrics(logger, {f"{split}_top1/{name}": x for name, of in top1.items() for split, x in of.items()})
        results = _write(asked, top1, curve)
        if stage == "finetune":
            log_run(logger, run.folder, f"{asked.spec.name}-{data.name}-fine-tuned")
    if run.is_first:
        Console().print(top1_table(results))
    if asked.plan is not None:
        log.info("the network: %s", how_to_load(asked.spec, run.folder))
    elif stage == "base":
        log.info("the weights: weights=%s", run.folder / f"{asked.spec.name}.safetensors")
    return top1["after"]["reward"]


def _ask(config: DictConfig) -> _Asked:
    """Checks the settings, prepares the images and builds the networks."""
    cfg: TrainConfig = typed(config, TrainConfig)
    check_formats(cfg.export)
    plan = PruningPlan.load(Path(cfg.plan)) if cfg.plan else None
    whole = cfg.data is not None and "_target_" in cfg.data
    if plan is not None:
        config = _with_images(config, cfg, plan, whole)
        cfg = typed(config, TrainConfig)
    check_training(cfg)
    spec = _spec(cfg, plan)
    # The pruned weights expect their images as the original's did, whatever images are given now.
    known = Preprocessing(**plan.data["preprocessing"]) if plan and plan.data else None
    # Test images that the plan's rewards were taken on are no test images: its images are cut as they were.
    reward_split = str(plan.data.get("reward_split", TRAIN)) if plan and plan.data else TRAIN
    if whole and reward_split != HELD_OUT:  # a path is that of the plan's own images
        reward_split = TRAIN
    run = open_run(config)
    data = data_of(cfg, known or preprocessing_of(spec, cfg.weights), reward_split)
    data.prepare_data()
    data.setup()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    size = int(plan.model["image_size"]) if plan and plan.model else data.image_size
    unpruned = create_model(spec, data.num_classes, size, cfg.weights)
    model = unpruned if plan is None else load_pruned(Path(str(cfg.plan)).parent, unpruned)
    teacher = create_model(spec, data.num_classes, size, cfg.teacher) if cfg.teacher else None
    if teacher is not None and not data.labelled:
        label(data, teacher, run.device)
    protocol = Protocol(split=reward_split, labels=data.labelled, images=data.provenance)
    return _Asked(run, cfg, plan, spec, data, unpruned, model, teacher, protocol)


def _with_images(config: DictConfig, cfg: TrainConfig, plan: PruningPlan, whole: bool) -> DictConfig:
    """The settings, with the images of the plan's search unless others are given."""
    if plan.model is None:
        raise UserError(f"plan={cfg.plan} does not say how to build its network; fine-tune it with your own code.")
    if not whole:
        if plan.data is None:
            raise UserError(f"plan={cfg.plan} does not say which images it saw; add data=….")
        # `+data.batch_size=256` changes one setting of the search's images, `data=cifar10` replaces them.
        served = OmegaConf.merge(_of_this_package(plan.data["config"], cfg.plan), cfg.data or {})
        config = cast(DictConfig, OmegaConf.merge(config, {"data": served}))
    if config.data.num_classes != plan.model["num_classes"]:
        raise UserError(
            f"data.num_classes={config.data.num_classes}, but the network of plan={cfg.plan} has "
            f"{plan.model['num_classes']} classes; give the images that it was trained for."
        )
    return config


def _spec(cfg: TrainConfig, plan: PruningPlan | None) -> ModelSpec:
    """Which network: the one that is named, or that of the plan."""
    if plan is None or plan.model is None:
        spec = ModelSpec.from_config(cfg.model)
        check_model(spec, cfg.data["num_classes"], cfg.weights)
        return spec
    planned = plan.model["spec"]
    spec = ModelSpec.from_file(planned) if cfg.model is None else ModelSpec.from_config(cfg.model)
    if not spec.kwargs and spec.name == planned["name"]:
        spec = replace(spec, kwargs=planned["kwargs"])  # of what is named again, only the code has to be
    if spec.to_dict() != planned:
        raise UserError(f"{spec.setting} with model.kwargs={spec.kwargs} is not what plan={cfg.plan} is for.")
    return spec


def _write(asked: _Asked, top1: dict[str, dict[str, float]], curve: Curve) -> dict[str, Any]:
    """Writes the network and what is known of it; returns what results.json holds."""
    folder, plan, model = asked.run.folder, asked.plan, asked.model
    results: dict[str, Any] = {
        "model": asked.spec.name,
        "data": asked.data.name,
        "stage": asked.stage,
        "command": command(),
    }
    results |= {"top1": top1, "protocol": asdict(asked.protocol)}
    images = asked.data.tensors("reward", 8)[0][:]
    exported = export(model, images, asked.cfg.export, folder) if asked.run.is_first else {}
    if plan is not None and asked.run.is_first:
        write_pruned(folder, model, plan)
        exported |= check_saved(model, asked.unpruned, images, folder)
        write_card(folder, plan, model, {name: of["test"] for name, of in top1.items()}, exported, asked.protocol)
    elif asked.stage == "base":
        save_weights(folder / f"{asked.spec.name}.safetensors", model)
    results |= {"recovery_curve": curve, "export": exported}
    if asked.run.is_first:
        write_json(folder / "results.json", results)
    return results


def _of_this_package(served: Any, path: str | None) -> Any:
    """The images that a plan names, if this package serves them: a file must not say what code is run."""
    known = {f"{data_modules.__name__}.{name}" for name in data_modules.__all__ if name.endswith("DataModule")}
    plain = isinstance(served, dict) and all(
        isinstance(value, int | float | str | None) and "${" not in str(value) for value in served.values()
    )
    if not plain or served.get("_target_") not in known:
        raise UserError(f"plan={path} names images that this package does not serve; add data=….")
    return served
