"""The finished searches that a comparison is made of."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.report.tables import named_settings, sweep_jobs

NEARLY = 0.99
"""The share of a run's final best accuracy that counts as "found"."""


class Task(NamedTuple):
    """What methods have in common that can be compared."""

    model: str
    data: str
    cost: str
    budget: float
    reward: str = "top1"
    reward_split: str = "train"
    labels: bool = True

    def __str__(self) -> str:
        unusual = [
            f", {name}={str(getattr(self, name)).lower() if name == 'labels' else getattr(self, name)}"
            for name, usual in self._field_defaults.items()
            if getattr(self, name) != usual
        ]
        return f"{self.model} on {self.data}, budget {self.budget:g} ({self.cost}){''.join(unusual)}"


@dataclass(frozen=True)
class Run:
    """A finished search, as far as a comparison needs it."""

    results: dict[str, Any]
    """What is in results.json."""
    settings: dict[str, str]
    """Every setting by its dotted name, and the device; the device alone where the run wrote no config.yaml."""
    curve: np.ndarray
    """[E] the best reward after each evaluation."""

    @property
    def method(self) -> str:
        """What searched: the method, or the agent where no method was named."""
        return str(self.results.get("method") or self.results["agent"])

    @property
    def task(self) -> Task:
        """What it searched for."""
        model, data, cost, budget = (self.results[name] for name in ("model", "data", "cost", "budget"))
        return Task(model, data, cost, budget, self.protocol.reward, self.protocol.split, self.protocol.labels)

    @property
    def protocol(self) -> Protocol:
        """What its rewards and accuracies are."""
        return Protocol.of(self.results)

    def top1(self, network: str) -> float | None:
        """Accuracy on the test images in %: of the network `original`, `pruned` or `fine-tuned`, None if untested."""
        values = {each["name"]: each["top1"] for each in self.results["networks"]}
        return values.get(network)


def running_best(history: Path) -> np.ndarray:
    """The best reward after each evaluation of a search, [E].

    Evaluations are the episodes of history.csv whose reward was not known already (`cached` is 0): what was known
    cost nothing, and lies with the evaluation before it. Every episode is within the budget, so all count.
    """
    with history.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    best = np.maximum.accumulate([float(row["reward"]) for row in rows])
    # If an agent knew its first proposal, that one stands for an evaluation too.
    number = np.maximum(np.cumsum([row["cached"] == "0" for row in rows]), 1)
    last = np.append(np.diff(number) > 0, True)
    return best[last]


def evaluations_until(curve: np.ndarray, share: float = NEARLY, protocol: Protocol = Protocol()) -> int:  # noqa: B008
    """How many evaluations it took to find nearly the best.

    Rewards are negative errors, so a share is taken of the accuracy, 100 + reward: the first evaluation at which the
    running best accuracy reaches `share` of the run's final best accuracy. Our reading of "converged": it looks back
    from the end of the same run, so a method that never gets far may be there early. Of a divergence d it is taken of
    exp(-d): 99 % are reached within 0.01 nats.

    Args:
        curve: [E] the best reward after each evaluation.
        share: In (0, 1].
        protocol: What a reward is.
    """
    accuracy = protocol.share(curve)
    # 100 - 20.8 must count as 99 % of 80, which floating point numbers alone do not promise.
    return int(np.argmax(accuracy >= share * accuracy[-1] - 1e-9)) + 1


def read_runs(folders: list[Path]) -> tuple[list[Run], list[str]]:
    """The finished searches in `folders` or below, each once, and the names of those that did not end.

    Raises:
        UserError: There is none that has ended, or no such folder.
    """
    runs, unfinished, seen = [], [], set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give folders of finished searches, e.g. outputs/multirun/<sweep>.")
        for job, results in sweep_jobs(folder).items():
            if job.resolve() in seen:
                continue
            seen.add(job.resolve())
            if results is None:
                named = ", ".join(f"{name} {value}" for name, value in named_settings(job).items())
                unfinished.append(f"{job.relative_to(folder.parent).as_posix()} ({named})")
                continue
            if not (job / "history.csv").is_file():
                raise UserError(f"{job} holds no history.csv; give the whole folder of the search, or leave it out.")
            config = job / "config.yaml"
            settings = _flat(OmegaConf.to_container(OmegaConf.load(config))) if config.is_file() else {}
            settings["device"] = results["device"]
            if settings.get("stages", "1") != "1":
                settings.pop("plan", None)  # of the stage before, in the run's own folder
            runs.append(Run(results, settings, running_best(job / "history.csv")))
    if not runs:
        raise UserError(
            f"no finished search in {', '.join(map(str, folders))}; "
            "give folders that hold a results.json and a history.csv, e.g. outputs/multirun/<sweep>."
        )
    return runs, unfinished


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of nested settings as text, by their dotted names."""
    if not isinstance(node, dict) or not node:
        return {prefix: json.dumps(node) if node is None or isinstance(node, bool) else str(node)}
    joined = (_flat(value, f"{prefix}.{name}".lstrip(".")) for name, value in node.items())
    return {name: value for part in joined for name, value in part.items()}
