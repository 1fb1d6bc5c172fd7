"""What `gl.search` has found."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from gnnrl_lightning.core.files import write_csv, write_json
from gnnrl_lightning.core.numbers import aligned, millions, percent
from gnnrl_lightning.core.ranks import agreed
from gnnrl_lightning.evaluation.final import Delivered
from gnnrl_lightning.evaluation.protocol import SCORE, Protocol
from gnnrl_lightning.problem.problem import Problem
from gnnrl_lightning.pruning.apply import planned_widths
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.saved import write_pruned
from gnnrl_lightning.topology.outline import write_layers

if TYPE_CHECKING:  # it takes all of Lightning
    from gnnrl_lightning.searching.explore import Explored


@dataclass(frozen=True, repr=False)
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
        """One row an episode: reward, cost, widths and so on; `cached` where the network was tried before."""
        return self.explored.module.history

    @cached_property
    def rewards(self) -> dict[str, float]:
        """What the networks are worth on all reward data, see `SearchSettings.reward`; or their scores.

        `original`, `pruned`, and `finished` where the finish was taken; measured at the end of the search.
        """
        networks = {"original": self.problem.prunable.original, "pruned": self.delivered.final.network}
        if self.delivered.finished:
            networks["finished"] = self.delivered.network
        return agreed({name: self.explored.evaluator.judge.of_finished(each) for name, each in networks.items()})

    def summary(self) -> str:
        """What it costs and what it is worth, as a table in text."""
        topology = self.problem.prunable.unpruned
        full, widths = topology.full_widths(), planned_widths(topology, self.plan)
        counted = {"MACs, M": topology.macs, "parameters, M": topology.parameters}
        cost = self.problem.cost
        if getattr(cost, "name", "") not in ("flops", "params"):
            counted[f"cost, {getattr(cost, 'unit', '')}"] = cost
        rows = [("", "original", "found", "")]
        for name, of in counted.items():
            before, after = int(of(full)), int(of(widths))
            rows.append((name, millions(before), millions(after), percent(after / before)))
        made = self.delivered.final.weights + (", finished" if self.delivered.finished else "")
        tried = sum(not row["cached"] for row in self.history)
        worth = ", ".join(f"{name} {self._protocol.best(reward)}" for name, reward in self.rewards.items())
        return "\n".join([*aligned(rows), worth, f"weights: {made}; {tried} networks were tried"])

    def __repr__(self) -> str:
        return self.summary()

    @property
    def _protocol(self) -> Protocol:
        evaluator = self.explored.evaluator
        return Protocol(SCORE if evaluator.judge.score is not None else self.explored.prepared.settings.reward)

    def save(self, folder: Path | str) -> Path:
        """Writes `pruned.safetensors` and `plan.json`, which `load_pruned` reads, `history.csv` and `rewards.json`.

        Args:
            folder: Made if it is not there.

        Returns:
            The folder.
        """
        folder = Path(folder)
        write_pruned(folder, self.model, self.plan)
        write_csv(folder / "history.csv", self.history, list(self.history[0]))
        write_json(folder / "rewards.json", self.rewards)
        return folder

    def report(self, folder: Path | str) -> Path:
        """Writes what `save` does, and `report.html` with its figures and numbers; measures both networks.

        Args:
            folder: Made if it is not there.

        Returns:
            The page.
        """
        # Imported here: matplotlib and Lightning take seconds.
        from gnnrl_lightning.report.page import write_report
        from gnnrl_lightning.searching.results import curves, results_of_search

        folder, explored = self.save(folder), self.explored
        prepared, evaluator, judge = explored.prepared, explored.evaluator, explored.evaluator.judge
        topology = self.problem.prunable.unpruned
        networks = {"original": self.problem.prunable.original, "pruned": self.model}
        sizes = {"original": topology.full_widths(), "pruned": planned_widths(topology, self.plan)}
        worth: dict[str, dict[str, float | None]] = {
            name: {"top1": None, "reward": reward} for name, reward in self.rewards.items()
        }
        counted = {"train": len(prepared.training[0]), "reward": len(judge.samples)}
        images = f"Rewards are taken on {counted['reward']:,} samples from which the search learned nothing else."
        reward = self._protocol.reward
        parts = {"importance": prepared.importance, "recovery": prepared.recovery}
        results = {
            "model": type(networks["original"]).__name__,
            "data": "the given data",
            "agent": self.plan.about["agent"],
            **{name: type(part).__name__ for name, part in parts.items()},
            "seed": prepared.settings.seed,
            "command": None,
            "protocol": asdict(Protocol(reward, images=images if reward != SCORE else "")),
            "images": counted,
            "seconds": {"networks tried": sum(float(row["seconds"]) for row in self.history)},
            **results_of_search(explored, self.delivered, networks, sizes, worth),
            "export": {},
            "reward": {"best_seen": explored.module.best["reward"], "whole_split": self.rewards["pruned"]},
            "recovery_curve": [],
        }
        write_json(folder / "results.json", results)
        write_layers(folder / "layers.json", topology, sizes["pruned"])
        if evaluator.curves:
            found = curves(self.problem.topology, evaluator.curves, evaluator.plans, explored.widths)
            write_json(folder / "curves.json", found)
        return write_report(folder)
