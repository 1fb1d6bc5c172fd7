"""The story of search.py: from a trained network to a smaller one, measured and reported."""

import copy
import json
import logging
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from gnnrl_lightning.base import train_base
from gnnrl_lightning.config import SearchConfig, build, typed
from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.files import write_json
from gnnrl_lightning.data import ImageDataModule, Preprocessing
from gnnrl_lightning.data.held_out import TRAIN
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.final import deliver
from gnnrl_lightning.evaluation.measure import budget_check, speeds, test_top1, weight_bytes
from gnnrl_lightning.export import check_formats, check_saved, export
from gnnrl_lightning.finetune import Curve
from gnnrl_lightning.fitting import device_of, fit, join_ranks, ranks_of
from gnnrl_lightning.models.factory import ModelSpec, check_model, create_model, preprocessing_of
from gnnrl_lightning.problem import Problem, check_stages, make_prunable, prune_again
from gnnrl_lightning.pruning.apply import load_pruned, make_plan, placed, planned_widths, save_pruned
from gnnrl_lightning.pruning.importance.reconstruction import ReconstructionError
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.reconstruction.reconstruction import Reconstruction
from gnnrl_lightning.report.card import write_card
from gnnrl_lightning.report.numbers import millions
from gnnrl_lightning.report.page import write_report
from gnnrl_lightning.report.protocol import Protocol
from gnnrl_lightning.report.results import choice, command, curves, durations, opening, stages
from gnnrl_lightning.report.tables import stage_table
from gnnrl_lightning.searching.run import begin, check_resume, check_stage, has_ended, run_agent
from gnnrl_lightning.topology.outline import write_layers
from gnnrl_lightning.tracking import log_input, log_metrics, log_run, open_loggers
from gnnrl_lightning.unlabelled import check_search, label

log = logging.getLogger(__name__)


def search(config: DictConfig) -> float:
    """Searches for a smaller network, builds it, measures it and writes the run's folder; in `stages` if so asked.

    All stages but the last are runs of their own, in `stages/1` and so on, with budgets in geometric progression. One
    that has ended is not run again.

    Returns:
        The winner's reward on the whole reward split.

    Raises:
        UserError: If the configuration is at fault; before any training where that can be known.
    """
    cfg: SearchConfig = typed(config, SearchConfig)
    if cfg.stages > 1 and cfg.plan is not None:
        raise UserError(f"stages={cfg.stages} starts from the whole network; give stages=1 with plan={cfg.plan}.")
    for number in range(1, cfg.stages):
        folder = Path(config.paths.run) / "stages" / str(number)
        part = {"budget": cfg.budget ** (number / cfg.stages), "paths": {"run": str(folder)}, "export": []}
        stage = cast(DictConfig, OmegaConf.merge(config, part))
        if not check_stage(stage, folder):
            log.info("stage %d of %d", number, cfg.stages)
            _prune(stage)
        config = cast(DictConfig, OmegaConf.merge(config, {"plan": str(folder / "plan.json")}))
    return _prune(config)


def _prune(config: DictConfig) -> float:
    """One stage: a search, the network that it found, its fine-tuning and its report."""
    cfg: SearchConfig = typed(config, SearchConfig)
    folder, device = Path(config.paths.run), device_of(config)
    if has_ended(config, folder):
        log.info("%s has ended with these settings; it is not run again", folder)
        return cast(float, json.loads((folder / "results.json").read_text())["reward"]["whole_split"])
    check_resume(config, folder)
    check_search(config, cfg)
    check_formats(cfg.export)
    spec = ModelSpec.from_config(config.model)
    check_model(spec, config.data.num_classes, cfg.weights)
    earlier = PruningPlan.load(Path(cfg.plan)) if cfg.plan else None  # before anything is downloaded
    data = data_of(config, preprocessing_of(spec, cfg.weights), cfg.reward_split)
    data.prepare_data()
    data.setup()
    clock = {"base": time.perf_counter()}
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    original = create_model(spec, data.num_classes, data.image_size, cfg.weights)
    example = torch.zeros(1, 3, data.image_size, data.image_size)
    prunable = make_prunable(original, example, cfg)
    if cfg.stages > 1 and earlier is None:
        check_stages(prunable, cfg)
    if earlier is not None:
        if (earlier.model or {}).get("spec") != spec.to_dict():
            raise UserError(f"plan={cfg.plan} is not for {spec.setting}; give the network that it was made for.")
        left = load_pruned(Path(str(cfg.plan)).parent, copy.deepcopy(original))
        prunable = prune_again(prunable, left, earlier, cfg)
    unpruned, topology, deployed = prunable.unpruned, prunable.topology, prunable.deployed
    log.info("channels are removed by %s", "surgery" if prunable.remove is prune else "rewriting the traced graph")
    cost = build(config.cost, topology=unpruned, network=deployed, device=device)
    problem = Problem(prunable, cost, cfg.budget)
    full_cost, cost_of = problem.full_cost, problem.cost_of
    names = [group.name for group in topology.groups]

    recovery = build(config.recovery)
    evaluator: Evaluator  # stands when the first reward is asked for
    env = problem.environment(lambda widths: evaluator(widths), cfg.max_steps)
    if earlier is not None and cost_of(topology.full_widths()) <= env.allowed:
        raise UserError(f"plan={cfg.plan} is within budget={cfg.budget:g} already; give a lower budget.")
    log.info(
        "budget %.2f: %s of %s %s; %d groups, %d channels",
        cfg.budget,
        millions(env.allowed),
        millions(env.full_cost),
        cost.unit,
        len(topology.groups),
        int(topology.full_widths().sum()),
    )
    if not data.labelled:
        label(data, original, device)
    reward = data.tensors("reward")
    importance = build(config.importance)
    if hasattr(importance, "check"):
        importance.check(topology)
    available = len(data.splits["train"].labels)
    wanted: dict[str, int | None] = {"recovery.images": recovery.images, "importance.images": importance.images}
    closed_form = cfg.refit.enabled or cfg.start == "closed_form" or isinstance(importance, ReconstructionError)
    if closed_form:
        wanted["refit.images"] = cfg.refit.images
    for name, number in wanted.items():
        if number is not None and number > available:
            log.info("%s=%d: only %d training images there are; all are taken", name, number, available)
    needed = (available if number is None else number for number in wanted.values())
    training = data.tensors("train", min(max(*needed, 1), available))
    # Seeded anew, so that the agent starts alike whether the base network is trained now or comes from a file.
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    task = env.task(
        lambda: evaluator.ranking.scores,
        -(-cfg.episodes // ranks_of(config)),
        reconstruction=Reconstruction(prunable.model, topology, training[0], cfg.refit) if closed_form else None,
        plans=(lambda: evaluator.plans) if cfg.start == "closed_form" else None,
    )
    agent = build(config.agent, task=task)

    rank_zero_only(begin)(config, folder)
    with open_loggers(config, "search") as logger:
        if earlier is not None:
            log_input(logger, Path(str(cfg.plan)).parent, f"{spec.name}-{data.name}", earlier.about)
        if cfg.weights is None:
            train_base(original, spec, str(unpruned.program), data, cfg.base, config, logger)
        join_ranks(config)
        clock["search"] = time.perf_counter()
        count = min(cfg.reward_images or len(reward[1]), len(reward[1]))
        evaluator = Evaluator(
            prunable.model,
            task,
            prunable.remove,
            importance,
            recovery,
            reward,
            training,
            count,
            data.eval_batch_size,
            device,
            config.trainer.precision,
            original if cfg.reward == "kl" else None,
        )
        module = run_agent(config, cfg, agent, env, folder, logger, task.plans)
        widths, whole = evaluator.winner(module.finalists(cfg.finalists), module.best["reward"])
        clock["finish"] = time.perf_counter()

        kept = evaluator.kept(widths)
        about = {"budget": cfg.budget, "cost": cost.name, "seed": cfg.seed, "agent": choice("agent")}
        network = {"spec": spec.to_dict(), "num_classes": data.num_classes, "image_size": data.image_size}
        served = {
            "config": OmegaConf.to_container(config.data, resolve=True),
            "preprocessing": asdict(data.preprocessing),
            "reward_split": data.reward_split,
        }
        plan = make_plan(topology, kept)
        plan = replace(earlier.then(plan) if earlier else plan, model=network, data=served, about=about)
        finetunes = bool(cfg.finetune.epochs and cfg.finetune.max_steps)
        shown = partial(data.training_images, cfg.finish.batch_size, device, evaluator.layout)
        delivered = deliver(evaluator, kept, cfg, shown, learns_on=finetunes)
        final, learned, pruned = delivered.final, delivered.finish, delivered.final.network
        images = data.test_dataloader()
        top1 = {"original": test_top1(original, images, device, "original")}
        networks = {"original": original}
        sizes = {"original": unpruned.full_widths()}
        opened = opening(env, evaluator.plans) if task.plans else None
        if opened is not None and not torch.equal(opened, widths):  # what the search has added to it
            networks["closed-form"] = evaluator.network(opened)
            sizes["closed-form"] = placed(names, opened, unpruned)
            top1["closed-form"] = test_top1(networks["closed-form"], images, device, "closed-form")
        top1["pruned"] = test_top1(pruned, images, device, "pruned")
        write = rank_zero_only(save_pruned)
        write(folder, pruned, plan)
        if delivered.finished:
            pruned = delivered.network
            top1["finished"] = test_top1(pruned, images, device, "finished")
            write(folder, pruned, plan)
        clock["finetune"] = time.perf_counter()
        curve: Curve = []
        if finetunes:
            checkpoint = folder / "checkpoints" / "finetune.ckpt"
            teacher = original if cfg.finetune.distill else None
            curve = fit(pruned, data, cfg.finetune, "finetune", config, logger, checkpoint, teacher)
            checkpoint.unlink(missing_ok=True)  # another winner of this search must not go on from it
            top1["fine-tuned"] = test_top1(pruned, images, device, "fine-tuned")
            write(folder, pruned, plan)
        clock["end"] = time.perf_counter()
        seconds = durations(clock)
        seconds["search"] = round(seconds["search"] + module.seconds_before, 1)
        log_metrics(logger, {"search/winner_reward": whole} | {f"test_top1/{name}": x for name, x in top1.items()})
        if module.global_rank == 0:
            exported = check_saved(pruned, original, reward[0][:8], folder)
            exported |= export(pruned, reward[0][:8], cfg.export, folder)
            protocol = Protocol(cfg.reward, cfg.reward_split, data.labelled, data.provenance)
            write_card(folder, plan, pruned, top1, exported, protocol)
            batches = [reward[0][: min(count, len(reward[1]))] for count in (1, 32)]
            networks["pruned"], sizes["pruned"] = pruned, planned_widths(unpruned, plan)
            measured = [
                dict(zip(networks, speeds([*networks.values()], batch, device), strict=True)) for batch in batches
            ]
            results = {
                "model": spec.name,
                "data": data.name,
                **{name: choice(name) for name in ("method", "agent", "importance", "recovery")},
                "budget": cfg.budget,
                "cost": cost.name,
                "cost_unit": cost.unit,
                "seed": cfg.seed,
                "command": command(),
                "device": f"{device.type.upper()}, {torch.get_num_threads()} threads",
                "protocol": asdict(protocol),
                "images": {name: len(split.labels) for name, split in data.splits.items()},
                "trained_copy": evaluator.ranking.model is not None,
                "episodes": len(module.history),
                "evaluations": sum(not row["cached"] for row in module.history),
                "seconds": seconds,
                "stages": stages(
                    unpruned, top1, {name: (sizes[name], each.median_ms) for name, each in measured[0].items()}
                ),
                "speed": {name: [asdict(batch[name]) for batch in measured] for name in ("original", "pruned")},
                "layout": "channels last" if evaluator.layout == torch.channels_last else "contiguous",
                "weight_bytes": {"original": weight_bytes(original), "pruned": weight_bytes(pruned)},
                "allowed": {"cost": env.allowed, "fraction": cfg.budget},
                "cost_values": {"original": full_cost, "used": int(cost_of(widths))},
                "budget_check": budget_check(
                    cost, [full_cost, int(cost_of(widths))], [deployed, pruned], example, device
                ),
                "levels": {"uniform": env.reward(task.uniform)}
                | ({} if opened is None else {"closed_form": env.reward(opened)}),
                "weights": {"from": final.weights, "rewards": final.rewards},
                "finish": learned and {"error": learned.error, "divergence": learned.divergence},
                "export": exported,
                "reward": {"best_seen": module.best["reward"], "whole_split": whole},
                "reward_top1_original": test_top1(original, data.val_dataloader(), device, "original, reward split"),
                "recovery_curve": curve,
                "versions": {"torch": torch.__version__, "lightning": L.__version__},
            }
            write_layers(folder / "layers.json", unpruned, planned_widths(unpruned, plan))
            write_json(folder / "results.json", results)
            if evaluator.curves:
                write_json(folder / "curves.json", curves(topology, evaluator.curves, evaluator.plans, widths))
            report = write_report(folder)
            log_run(logger, folder, f"{spec.name}-{data.name}", [f"{cost.name}-{cfg.budget:g}"])
    if module.global_rank == 0:  # behind what the loggers say when they close
        Console().print(stage_table(results))
        log.info("report: %s\nthe network: %s", report, loading(spec, folder))
    return whole


def loading(spec: ModelSpec, folder: Path) -> str:
    """What to type for the pruned network; one of the user's own is built by the user."""
    return f"gl.load_pruned({str(folder)!r}{', model=…' if spec.source == 'module' else ''})"


def data_of(config: DictConfig, preprocessing: Preprocessing, reward_split: str = TRAIN) -> ImageDataModule:
    """The data module, checked before anything is downloaded or decoded."""
    data: ImageDataModule = build(config.data, preprocessing=preprocessing, seed=config.seed, reward_split=reward_split)
    data.check()
    return data
