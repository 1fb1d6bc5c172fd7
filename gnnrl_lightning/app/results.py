"""What a search by command has found, measured: all that results.json holds."""

from dataclasses import asdict
from typing import Any

from gnnrl_lightning.app.asked import Asked
from gnnrl_lightning.app.command import choice, command
from gnnrl_lightning.app.export import check_saved, export
from gnnrl_lightning.app.outcome import Outcome
from gnnrl_lightning.evaluation.measure import test_top1
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.report.card import write_card
from gnnrl_lightning.searching.explore import Explored
from gnnrl_lightning.searching.results import durations, results_of_search
from gnnrl_lightning.topology.outline import write_layers


def results_of(asked: Asked, explored: Explored, outcome: Outcome, clock: dict[str, float]) -> dict[str, Any]:
    """Measures what was found, exports it and writes what stands beside it; all that results.json holds.

    Args:
        asked: What was asked.
        explored: The search.
        outcome: What it has come to.
        clock: When each part of the run began.
    """
    cfg, data, folder, module = asked.cfg, asked.data, asked.run.folder, explored.module
    images = explored.prepared.reward[0][:8]
    exported = check_saved(outcome.network, asked.original, images, folder)
    exported |= export(outcome.network, images, cfg.export, folder)
    protocol = Protocol(cfg.reward, cfg.reward_split, data.labelled, data.provenance)
    write_card(folder, outcome.plan, outcome.network, outcome.top1, exported, protocol)
    write_layers(folder / "layers.json", asked.problem.prunable.unpruned, outcome.sizes["pruned"])
    worth: dict[str, dict[str, float | None]] = {name: {"top1": top1} for name, top1 in outcome.top1.items()}
    seconds = durations(clock)
    original_top1 = test_top1(asked.original, data.val_dataloader(), asked.run.device, "original, reward split")
    return {
        "model": asked.spec.name,
        "data": data.name,
        **{name: choice(name) for name in ("method", "agent", "importance", "recovery")},
        "seed": cfg.seed,
        "command": command(),
        "protocol": asdict(protocol),
        "images": {name: len(split.labels) for name, split in data.splits.items()},
        "seconds": seconds | {"search": round(seconds["search"] + module.seconds_before, 1)},
        **results_of_search(explored, outcome.delivered, outcome.networks, outcome.sizes, worth),
        "export": exported,
        "reward": {"best_seen": module.best["reward"], "whole_split": explored.reward},
        "reward_top1_original": original_top1,
        "recovery_curve": outcome.curve,
    }
