"""What `gl.search` has found."""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gnnrl_lightning.core.files import write_json
from gnnrl_lightning.evaluation.final import Delivered
from gnnrl_lightning.problem.problem import Problem
from gnnrl_lightning.pruning.apply import planned_widths, save_pruned
from gnnrl_lightning.pruning.plan import PruningPlan

if TYPE_CHECKING:  # it takes all of Lightning
    from gnnrl_lightning.searching.explore import Explored


@dataclass(frozen=True)
class Found:
    """A smaller network and how it was found.

    Attributes:
        problem: What was asked.
        plan: Which channels stay.
        explored: The search.
        delivered: What was made of its winner.
    """

    problem: Problem
    plan: PruningPlan
    explored: "Explored"
    delivered: Delivered

    @property
    def model(self) -> nn.Module:
        """The smaller network, in eval mode."""
        return self.delivered.network

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row a network that was tried: reward, cost, widths and so on."""
        return self.explored.module.history

    @cached_property
    def rewards(self) -> dict[str, float]:
        """What the networks are worth on all reward data, see `SearchSettings.reward`; or their scores."""
        networks = {"original": self.problem.prunable.original, "pruned": self.delivered.final.network}
        if self.delivered.finished:
            networks["finished"] = self.delivered.network
        return {name: self.explored.evaluator.reward_of(network) for name, network in networks.items()}

    def summary(self) -> str:
        """What it costs and what it is worth, as a table in text."""
        topology = self.problem.prunable.unpruned
        full, widths = topology.full_widths(), planned_widths(topology, self.plan)
        rows = [("", "original", "found", "")]
        kinds = {"MACs, M": topology.macs, "parameters, M": topology.parameters}
        for name, of in kinds.items():
            rows.append(_row(name, int(of(full)) / 1e6, int(of(widths)) / 1e6))
        cost = self.problem.cost
        if getattr(cost, "name", "") not in ("flops", "params"):
            rows.append(_row(f"cost, {getattr(cost, 'unit', '')}", _of(cost, full), _of(cost, widths)))
        rewards = self.rewards
        rows.append(("reward", f"{rewards['original']:.4g}", f"{list(rewards.values())[-1]:.4g}", ""))
        lengths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(cell.rjust(length) for cell, length in zip(row, lengths, strict=True)) for row in rows]
        made = self.delivered.final.weights + (", finished" if self.delivered.finished else "")
        tried = sum(not row["cached"] for row in self.history)
        return "\n".join([*(line.rstrip() for line in lines), f"weights: {made}; {tried} networks were tried"])

    def save(self, folder: Path | str) -> Path:
        """Writes `pruned.safetensors` and `plan.json`, which `load_pruned` reads, and `history.csv`.

        Args:
            folder: Made if it is not there.
        """
        folder = Path(folder)
        save_pruned(folder, self.model, self.plan)
        with (folder / "history.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.history)
        write_json(folder / "rewards.json", self.rewards)
        return folder


def _of(cost: Any, widths: Tensor) -> float:
    """A cost of this package counts in millionths of its unit."""
    value = float(cost(widths))
    return value / 1e6 if type(cost).__module__.startswith("gnnrl_lightning.") else value


def _row(name: str, before: float, after: float) -> tuple[str, str, str, str]:
    return name, f"{before:.3f}", f"{after:.3f}", f"{100 * after / before:.1f} %"
