"""The story of search.py: from a trained network to a smaller one, measured and reported."""

import json
import logging
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from gnnrl_lightning.app.agent import check_stage, fit_agent, shaping
from gnnrl_lightning.app.asked import Asked, ask
from gnnrl_lightning.app.command import how_to_load
from gnnrl_lightning.app.config import SearchConfig, typed
from gnnrl_lightning.app.outcome import hand_on
from gnnrl_lightning.app.prepared import prepare
from gnnrl_lightning.app.results import results_of
from gnnrl_lightning.app.run import has_ended, open_run, write_settings
from gnnrl_lightning.app.tracking import log_input, log_metrics, log_run, open_loggers
from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.files import write_json
from gnnrl_lightning.core.ranks import only
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.report.page import write_report
from gnnrl_lightning.report.tables import network_table
from gnnrl_lightning.searching.agents.protocol import Agent
from gnnrl_lightning.searching.explore import explore
from gnnrl_lightning.searching.preparation import Preparation
from gnnrl_lightning.searching.results import curves
from gnnrl_lightning.training.base import train_base

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
        if not check_stage(open_run(stage)):
            log.info("stage %d of %d", number, cfg.stages)
            _prune(stage)
        config = cast(DictConfig, OmegaConf.merge(config, {"plan": str(folder / "plan.json")}))
    return _prune(config)


def _prune(config: DictConfig) -> float:
    """One stage: a search, the network that it found, its fine-tuning and its report."""
    cfg: SearchConfig = typed(config, SearchConfig)
    run = open_run(config)
    folder = run.folder
    if has_ended(run):
        log.info("%s has ended with these settings; it is not run again", folder)
        return cast(float, json.loads((folder / "results.json").read_text(encoding="utf-8"))["reward"]["whole_split"])
    asked = ask(run, cfg)
    prepared, agent = prepare(asked)
    with only(folder) if run.is_first else nullcontext():
        return _searched(asked, prepared, agent)


def _searched(asked: Asked, prepared: Preparation, agent: Agent) -> float:
    """The search itself, once all is checked, and what becomes of its winner."""
    run, cfg, folder, clock = asked.run, asked.cfg, asked.run.folder, {"base": time.perf_counter()}
    if run.is_first:
        write_settings(run)
    spec, data, original = asked.spec, asked.data, asked.original
    with open_loggers(run, "search") as logger:
        if asked.earlier is not None:
            log_input(logger, Path(str(cfg.plan)).parent, f"{spec.name}-{data.name}", asked.earlier.about)
        run.join()
        if cfg.weights is None:
            program = str(asked.problem.prunable.unpruned.program)
            train_base(original, spec, program, data, cfg.base, run)
        clock["search"] = time.perf_counter()
        evaluator = prepared.make_evaluator(run.device, data.eval_batch_size, cfg.trainer["precision"])
        fit = partial(fit_agent, run=run, protocol=Protocol(cfg.reward))
        explored = explore(prepared, agent, evaluator, fit, shaping(run))
        clock["finish"] = time.perf_counter()
        outcome = hand_on(asked, explored, clock)
        clock["end"] = time.perf_counter()
        tested = {f"test_top1/{name}": top1 for name, top1 in outcome.top1.items()}
        log_metrics(logger, {"search/winner_reward": explored.reward} | tested)
        if run.is_first:
            results = results_of(asked, explored, outcome, clock)
            write_json(folder / "results.json", results)
            if evaluator.curves:
                topology = asked.problem.topology
                write_json(folder / "curves.json", curves(topology, evaluator.curves, evaluator.plans, explored.widths))
            report = write_report(folder)
            tags = [f"{asked.problem.cost.name}-{cfg.budget:g}"]
            log_run(logger, folder, f"{spec.name}-{data.name}", tags)
    if run.is_first:  # behind what the loggers say when they close
        Console().print(network_table(results))
        log.info("report: %s\nthe network: %s", report, how_to_load(spec, folder))
    return explored.reward
