"""The numbers of a search that has ended, as `results.json` holds them."""

from dataclasses import asdict
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from gnnrl_lightning.core.inputs import Inputs
from gnnrl_lightning.evaluation.final import Delivered
from gnnrl_lightning.evaluation.measure import Speed, budget_check, speeds, weight_bytes
from gnnrl_lightning.searching.explore import Explored
from gnnrl_lightning.topology import Topology


def results_of_search(
    explored: Explored,
    delivered: Delivered,
    networks: dict[str, nn.Module],
    sizes: dict[str, Tensor],
    worth: dict[str, dict[str, float | None]],
) -> dict[str, Any]:
    """Measures what was found; what results.json holds of every search, by command or from Python.

    Args:
        explored: The search.
        delivered: What was made of its winner.
        networks: `original` and `pruned`, as it is handed on; that of the closed-form plan, if it was measured.
        sizes: Their widths among all groups of the original, [G].
        worth: What each is worth, see `network_numbers`.
    """
    prepared, evaluator, history = explored.prepared, explored.evaluator, explored.module.history
    problem, env, device = prepared.problem, prepared.env, evaluator.judge.device
    samples = prepared.reward[0]
    batches: list[Inputs] = [samples[: min(count, len(samples))] for count in (1, 32)]
    times = [dict(zip(networks, speeds(list(networks.values()), batch, device), strict=True)) for batch in batches]
    costs = [problem.full_cost, int(problem.cost_of(explored.widths))]
    deployed = [problem.prunable.deployed, networks["pruned"]]
    levels = {} if explored.opened is None else {"closed_form": env.reward(explored.opened)}
    latencies = {name: (sizes[name], each) for name, each in times[0].items()}
    final, learned = delivered.final, delivered.finish
    return {
        "budget": problem.budget,
        "cost": getattr(problem.cost, "name", type(problem.cost).__name__),
        "cost_unit": getattr(problem.cost, "unit", ""),
        "device": f"{device.type.upper()}, {torch.get_num_threads()} threads",
        "trained_copy": evaluator.ranking.model is not None,
        "episodes": len(history),
        "evaluations": sum(not row["cached"] for row in history),
        "networks": network_numbers(problem.prunable.unpruned, worth, latencies),
        "speed": {name: [asdict(batch[name]) for batch in times] for name in ("original", "pruned")},
        "layout": "channels last" if evaluator.layout == torch.channels_last else "contiguous",
        "weight_bytes": {name: weight_bytes(networks[name]) for name in ("original", "pruned")},
        "allowed": {"cost": env.allowed, "fraction": problem.budget},
        "cost_values": {"original": costs[0], "used": costs[1]},
        "budget_check": budget_check(problem.cost, costs, deployed, batches[0], device),
        "levels": {"uniform": env.reward(prepared.task.uniform)} | levels,
        "weights": {"from": final.weights, "rewards": final.rewards},
        "finish": learned
        and {
            "taken": learned.taken,
            "error": learned.error,
            "divergence": learned.divergence,
            "scores": learned.scores,
            "rewards": learned.rewards,
        },
        "versions": {"torch": torch.__version__, "lightning": L.__version__},
    }


def network_numbers(
    topology: Topology, worth: dict[str, dict[str, float | None]], measured: dict[str, tuple[Tensor, Speed]]
) -> list[dict[str, Any]]:
    """One row a network: the original, that of the closed-form plan, the pruned one, and what became of it.

    Args:
        topology: Of the original, for the closed-form cost.
        worth: What each is worth: `top1`, its accuracy in % on test images, and whatever else is known.
        measured: Widths [G] and speed of `original`, `closed-form` and `pruned`; those of other
            names have the widths of `pruned`.
    """
    rows = []
    for name, numbers in worth.items():
        widths, speed = measured.get(name, measured["pruned"])
        rows.append(
            {
                "name": name,
                **numbers,
                "macs": int(topology.macs(widths)),
                "params": int(topology.parameters(widths)),
                "latency_ms": speed.median_ms,
                "latency_ratio": speed.ratio,
                "latency_interval": speed.interval,
            }
        )
    return rows


def curves(topology: Topology, errors: list[Tensor], plans: dict[str, Tensor], widths: Tensor) -> dict[str, Any]:
    """The error curves and what was made of them, as `curves.json` holds them.

    Args:
        topology: The channel groups.
        errors: Error of each group at widths 0 to all, [width + 1].
        plans: Widths [G] that these suggest, by name.
        widths: The winner's, [G].
    """
    groups = [
        {"name": group.name, "width": group.width, "kept": kept, "errors": [float(f"{x:.4g}") for x in curve.tolist()]}
        for group, curve, kept in zip(topology.groups, errors, widths.tolist(), strict=True)
    ]
    return {"groups": groups, "plans": {name: plan.tolist() for name, plan in plans.items()}}


def durations(clock: dict[str, float]) -> dict[str, float]:
    """Seconds between the readings of a clock, by the name of the earlier one."""
    return {a: round(clock[b] - clock[a], 1) for a, b in pairwise(clock)}
