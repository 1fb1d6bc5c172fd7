"""What a search has found, measured: all that results.json holds."""

from dataclasses import asdict
from typing import Any

import lightning as L
import torch

from gnnrl_lightning.app.asked import Asked
from gnnrl_lightning.app.export import check_saved, export
from gnnrl_lightning.app.outcome import Outcome
from gnnrl_lightning.app.results import choice, command, durations, stages
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.measure import budget_check, speeds, test_top1, weight_bytes
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.report.card import write_card
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.searching.preparation import Preparation
from gnnrl_lightning.topology.outline import write_layers


def results_of(
    asked: Asked,
    prepared: Preparation,
    evaluator: Evaluator,
    module: SearchModule,
    outcome: Outcome,
    whole: float,
    clock: dict[str, float],
) -> dict[str, Any]:
    """Measures what was found, exports it and writes what stands beside it; all that results.json holds.

    Args:
        asked: What was asked.
        prepared: The search.
        evaluator: What gave its rewards.
        module: Its history.
        outcome: What it has come to.
        whole: The winner's reward on the whole reward split.
        clock: When each part of the run began.
    """
    cfg, data, problem, device = asked.cfg, asked.data, asked.problem, asked.run.device
    env, network, original, reward = prepared.env, outcome.network, asked.original, prepared.reward
    exported = check_saved(network, original, reward[0][:8], asked.run.folder)
    exported |= export(network, reward[0][:8], cfg.export, asked.run.folder)
    protocol = Protocol(cfg.reward, cfg.reward_split, data.labelled, data.provenance)
    write_card(asked.run.folder, outcome.plan, network, outcome.top1, exported, protocol)
    unpruned = problem.prunable.unpruned
    write_layers(asked.run.folder / "layers.json", unpruned, outcome.sizes["pruned"])
    batches = [reward[0][: min(count, len(reward[1]))] for count in (1, 32)]
    names, networks = list(outcome.networks), list(outcome.networks.values())
    measured = [dict(zip(names, speeds(networks, batch, device), strict=True)) for batch in batches]
    seconds = durations(clock)
    costs = [problem.full_cost, int(problem.cost_of(outcome.widths))]
    opened = {} if outcome.opened is None else {"closed_form": env.reward(outcome.opened)}
    final, learned = outcome.delivered.final, outcome.delivered.finish
    return {
        "model": asked.spec.name,
        "data": data.name,
        **{name: choice(name) for name in ("method", "agent", "importance", "recovery")},
        "budget": cfg.budget,
        "cost": problem.cost.name,
        "cost_unit": problem.cost.unit,
        "seed": cfg.seed,
        "command": command(),
        "device": f"{device.type.upper()}, {torch.get_num_threads()} threads",
        "protocol": asdict(protocol),
        "images": {name: len(split.labels) for name, split in data.splits.items()},
        "trained_copy": evaluator.ranking.model is not None,
        "episodes": len(module.history),
        "evaluations": sum(not row["cached"] for row in module.history),
        "seconds": seconds | {"search": round(seconds["search"] + module.seconds_before, 1)},
        "stages": stages(
            unpruned,
            outcome.top1,
            {name: (outcome.sizes[name], each.median_ms) for name, each in measured[0].items()},
        ),
        "speed": {name: [asdict(batch[name]) for batch in measured] for name in ("original", "pruned")},
        "layout": "channels last" if evaluator.layout == torch.channels_last else "contiguous",
        "weight_bytes": {"original": weight_bytes(original), "pruned": weight_bytes(network)},
        "allowed": {"cost": env.allowed, "fraction": cfg.budget},
        "cost_values": {"original": costs[0], "used": costs[1]},
        "budget_check": budget_check(problem.cost, costs, [problem.prunable.deployed, network], asked.example, device),
        "levels": {"uniform": env.reward(prepared.task.uniform)} | opened,
        "weights": {"from": final.weights, "rewards": final.rewards},
        "finish": learned and {"error": learned.error, "divergence": learned.divergence},
        "export": exported,
        "reward": {"best_seen": module.best["reward"], "whole_split": whole},
        "reward_top1_original": test_top1(original, data.val_dataloader(), device, "original, reward split"),
        "recovery_curve": outcome.curve,
        "versions": {"torch": torch.__version__, "lightning": L.__version__},
    }
