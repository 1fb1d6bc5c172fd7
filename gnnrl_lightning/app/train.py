"""The story of train.py: a plan's network fine-tuned, a base network trained, or either evaluated."""

import copy
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from gnnrl_lightning import data as data_modules
from gnnrl_lightning.app.asked import data_of
from gnnrl_lightning.app.config import TrainConfig, typed
from gnnrl_lightning.app.export import check_formats, check_saved, export
from gnnrl_lightning.app.results import command
from gnnrl_lightning.app.search import loading
from gnnrl_lightning.app.tracking import log_input, log_metrics, log_run, open_loggers
from gnnrl_lightning.app.unlabelled import check_training, label
from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.files import write_json
from gnnrl_lightning.data import Preprocessing
from gnnrl_lightning.data.held_out import HELD_OUT, TRAIN
from gnnrl_lightning.evaluation.measure import test_top1
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.models.factory import ModelSpec, check_model, create_model, preprocessing_of
from gnnrl_lightning.pruning.apply import load_pruned, save_pruned
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.report.card import write_card
from gnnrl_lightning.report.tables import top1_table
from gnnrl_lightning.training.base import save_weights
from gnnrl_lightning.training.fitting import device_of, fit
from gnnrl_lightning.training.supervised import Curve

log = logging.getLogger(__name__)


def train(config: DictConfig) -> float:
    """Fine-tunes the network of a plan, trains a base network, or evaluates either; writes to the run's folder.

    Returns:
        Top-1 in % on the reward split.

    Raises:
        UserError: If the configuration is at fault.
    """
    cfg: TrainConfig = typed(config, TrainConfig)
    check_formats(cfg.export)
    folder, device = Path(config.paths.run), device_of(config)
    plan = PruningPlan.load(Path(cfg.plan)) if cfg.plan else None
    if plan is not None and plan.model is None:
        raise UserError(f"plan={cfg.plan} does not say how to build its network; fine-tune it with your own code.")
    whole = cfg.data is not None and "_target_" in cfg.data
    if plan is not None and not whole:
        if plan.data is None:
            raise UserError(f"plan={cfg.plan} does not say which images it saw; add data=….")
        # `+data.batch_size=256` changes one setting of the search's images, `data=cifar10` replaces them.
        served = OmegaConf.merge(_of_this_package(plan.data["config"], cfg.plan), cfg.data or {})
        config = OmegaConf.merge(config, {"data": served})  # type: ignore[assignment]
    if plan is not None and plan.model is not None and config.data.num_classes != plan.model["num_classes"]:
        raise UserError(
            f"data.num_classes={config.data.num_classes}, but the network of plan={cfg.plan} has "
            f"{plan.model['num_classes']} classes; give the images that it was trained for."
        )
    check_training(config, cfg)
    spec = ModelSpec.from_config(plan.model["spec"] if plan and plan.model and cfg.model is None else config.model)
    if plan and plan.model and not spec.kwargs and spec.name == plan.model["spec"]["name"]:
        spec = replace(spec, kwargs=plan.model["spec"]["kwargs"])  # of what is named again, only the code has to be
    if plan is None or plan.model is None:
        check_model(spec, config.data.num_classes, cfg.weights)
    elif spec.to_dict() != plan.model["spec"]:
        raise UserError(f"{spec.setting} with model.kwargs={spec.kwargs} is not what plan={cfg.plan} is for.")
    # The pruned weights expect their images as the original's did, whatever images are given now.
    known = Preprocessing(**plan.data["preprocessing"]) if plan and plan.data else None
    # Test images that the plan's rewards were taken on are no test images: its images are cut as they were.
    reward_split = str(plan.data.get("reward_split", TRAIN)) if plan and plan.data else TRAIN
    if whole and reward_split != HELD_OUT:  # a path is that of the plan's own images
        reward_split = TRAIN
    data = data_of(config, known or preprocessing_of(spec, cfg.weights), reward_split)
    data.prepare_data()
    data.setup()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    size = int(plan.model["image_size"]) if plan and plan.model else data.image_size
    unpruned = create_model(spec, data.num_classes, size, cfg.weights)
    model = unpruned if plan is None else load_pruned(Path(str(cfg.plan)).parent, unpruned)
    teacher = create_model(spec, data.num_classes, size, cfg.teacher) if cfg.teacher else None
    if teacher is not None and not data.labelled:
        label(data, teacher, device)
    protocol = Protocol(split=reward_split, labels=data.labelled, images=data.provenance)
    stage = cfg.stage or ("finetune" if plan else "base")
    networks = {"before": copy.deepcopy(model), "after": model} if stage != "evaluate" else {"after": model}
    with open_loggers(config, stage) as logger:
        if plan is not None:
            log_input(logger, Path(str(cfg.plan)).parent, f"{spec.name}-{data.name}", plan.about)
        curve: Curve = []
        if stage != "evaluate":
            curve = fit(model, data, cfg.fit, stage, config, logger, folder / "checkpoints" / "last.ckpt", teacher)
        # The test split is read here alone, after all choices.
        top1 = {
            name: {
                "reward": test_top1(network, data.val_dataloader(), device, f"{name}, reward split"),
                "test": test_top1(network, data.test_dataloader(), device, f"{name}, test split"),
            }
            for name, network in networks.items()
        }
        log_metrics(logger, {f"{split}_top1/{name}": x for name, of in top1.items() for split, x in of.items()})
        results = {"model": spec.name, "data": data.name, "stage": stage, "command": command(), "top1": top1}
        results["protocol"] = asdict(protocol)
        images = data.tensors("reward", 8)[0][:]
        exported = rank_zero_only(export)(model, images, cfg.export, folder) or {}
        if plan is not None and getattr(rank_zero_only, "rank", 0) == 0:
            save_pruned(folder, model, plan)
            exported |= check_saved(model, unpruned, images, folder)
            write_card(folder, plan, model, {name: of["test"] for name, of in top1.items()}, exported, protocol)
        elif stage == "base":
            save_weights(folder / f"{spec.name}.safetensors", model)
        rank_zero_only(write_json)(folder / "results.json", results | {"recovery_curve": curve, "export": exported})
        if stage == "finetune":
            log_run(logger, folder, f"{spec.name}-{data.name}-fine-tuned")
    rank_zero_only(Console().print)(top1_table(results))
    if plan is not None:
        log.info("the network: %s", loading(spec, folder))
    elif stage == "base":
        log.info("the weights: weights=%s", folder / f"{spec.name}.safetensors")
    return top1["after"]["reward"]


def _of_this_package(served: Any, path: str | None) -> Any:
    """The images that a plan names, if this package serves them: a file must not say what code is run."""
    known = {f"{data_modules.__name__}.{name}" for name in data_modules.__all__ if name.endswith("DataModule")}
    plain = isinstance(served, dict) and all(
        isinstance(value, int | float | str | None) and "${" not in str(value) for value in served.values()
    )
    if not plain or served.get("_target_") not in known:
        raise UserError(f"plan={path} names images that this package does not serve; add data=….")
    return served
