"""The numbers of a finished search, as `results.json` holds them."""

import shlex
import sys
from itertools import pairwise
from typing import Any

from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.topology import Topology


def stages(
    topology: Topology, top1: dict[str, float], measured: dict[str, tuple[Tensor, float]]
) -> list[dict[str, Any]]:
    """One row a stage: the original network, that of the closed-form plan, the pruned one, and what became of it.

    Args:
        topology: Of the original, for the closed-form cost.
        top1: Accuracy in % of each stage, on the test split.
        measured: Widths [G] and latency in milliseconds of `original`, `closed-form` and `pruned`; stages of other
            names are of the pruned network.
    """
    rows = []
    for name, accuracy in top1.items():
        widths, latency = measured.get(name, measured["pruned"])
        rows.append(
            {
                "name": name,
                "top1": accuracy,
                "macs": int(topology.macs(widths)),
                "params": int(topology.parameters(widths)),
                "latency_ms": latency,
                "latency_ratio": measured["original"][1] / latency,
            }
        )
    return rows


def opening(env: PruningEnv, plans: dict[str, Tensor]) -> Tensor | None:
    """The best of the plans that a search opened with, [G]; None if it did not."""
    rewards = {name: env.rewards.get(tuple(widths.tolist())) for name, widths in plans.items()}
    known = {name: reward for name, reward in rewards.items() if reward is not None}
    return plans[max(known, key=known.__getitem__)] if known else None


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
