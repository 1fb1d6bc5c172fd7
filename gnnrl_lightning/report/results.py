"""The numbers of a finished search, as `results.json` holds them."""

import shlex
import sys
from itertools import pairwise
from typing import Any

from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from gnnrl_lightning.pruning.apply import planned_widths
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.search.environment import PruningEnv
from gnnrl_lightning.topology import Topology


def stages(topology: Topology, plan: PruningPlan, top1: dict[str, float], times: list[float]) -> list[dict[str, Any]]:
    """One row a stage: the original network, the pruned one, and the pruned one after fine-tuning.

    Args:
        topology: Of the original, for the closed-form cost.
        plan: Of the pruned network.
        top1: Accuracy in % of each stage, on the test split.
        times: Latency of the original and the pruned network, in milliseconds.
    """
    rows = []
    for name, accuracy in top1.items():
        original = name == "original"
        size = topology.full_widths() if original else planned_widths(topology, plan)
        latency = times[0] if original else times[1]
        rows.append(
            {
                "name": name,
                "top1": accuracy,
                "macs": int(topology.macs(size)),
                "params": int(topology.parameters(size)),
                "latency_ms": latency,
                "latency_ratio": times[0] / latency,
            }
        )
    return rows


def opened(env: PruningEnv, plans: dict[str, Tensor]) -> dict[str, float]:
    """The best reward of the plans that a search opened with, as the level `closed_form`; nothing if it did not."""
    rewards = [env.rewards[key] for widths in plans.values() if (key := tuple(widths.tolist())) in env.rewards]
    return {"closed_form": max(rewards)} if rewards else {}


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


def choice(group: str) -> str | None:
    """Which option of a configuration group this run uses; None: none of them."""
    option: str | None = HydraConfig.get().runtime.choices[group]
    return option


def command() -> str:
    """What was typed, or for a job of a sweep what would start it alone; quoted for a shell."""
    hydra = HydraConfig.get()
    return shlex.join([f"{hydra.job.name}.py", *hydra.overrides.task] if hydra.job.name else sys.argv)
