"""The finished searches that a comparison is made of: read, told apart by method, and checked for being alike."""

import csv
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from gnnrl_lightning.report.tables import named_settings, sweep_jobs

NEARLY = 0.99
"""The share of a run's final best accuracy that counts as "found"."""

_PARTS = ("agent", "importance", "recovery")
"""What a method is made of, and may differ in from others."""

_SHARED = {
    "importance": "channels are chosen by different importances",
    "recovery": "rewards, and top-1 before fine-tuning, are after different recoveries, and one that trains is of use "
    "after fine-tuning too",
}
"""Parts that agents can share, and what a table mixes where they do not."""

_IGNORED = ("method", "seed", "paths", "logger", "callbacks", "export")
"""What the runs are told apart by anyway, is repeated over, or has no influence on what is compared."""


class Task(NamedTuple):
    """What methods have in common that can be compared."""

    model: str
    data: str
    cost: str
    budget: float

    def __str__(self) -> str:
        return f"{self.model} on {self.data}, budget {self.budget:g} ({self.cost})"


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
        return Task(*(self.results[name] for name in Task._fields))

    def top1(self, stage: str) -> float | None:
        """Accuracy on the test images in %: of the network `original`, `pruned` or `fine-tuned`, None if untested."""
        values = {each["name"]: each["top1"] for each in self.results["stages"]}
        return values.get(stage)


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


def evaluations_until(curve: np.ndarray, share: float = NEARLY) -> int:
    """How many evaluations it took to find nearly the best.

    Rewards are negative errors, so a share is taken of the accuracy, 100 + reward: the first evaluation at which the
    running best accuracy reaches `share` of the run's final best accuracy. Our reading of "converged": it looks back
    from the end of the same run, so a method that never gets far may be there early.

    Args:
        curve: [E] the best reward after each evaluation.
        share: In (0, 1].
    """
    accuracy = 100 + curve
    # 100 - 20.8 must count as 99 % of 80, which floating point numbers alone do not promise.
    return int(np.argmax(accuracy >= share * accuracy[-1] - 1e-9)) + 1


def read_runs(folders: list[Path]) -> tuple[list[Run], list[str]]:
    """The finished searches in `folders` or below, each once, and the names of those that did not end.

    Raises:
        ValueError: There is none that has ended, or no such folder.
    """
    runs, unfinished, seen = [], [], set()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is no folder; give folders of finished searches, e.g. outputs/multirun/<sweep>."
            )
        for job, results in sweep_jobs(folder).items():
            if job.resolve() in seen:
                continue
            seen.add(job.resolve())
            if results is None:
                named = ", ".join(f"{name} {value}" for name, value in named_settings(job).items())
                unfinished.append(f"{job.relative_to(folder.parent).as_posix()} ({named})")
                continue
            if not (job / "history.csv").is_file():
                raise ValueError(f"{job} holds no history.csv; give the whole folder of the search, or leave it out.")
            config = job / "config.yaml"
            settings = _flat(OmegaConf.to_container(OmegaConf.load(config))) if config.is_file() else {}
            settings["device"] = results["device"]
            if settings.get("stages", "1") != "1":
                settings.pop("plan", None)  # of the stage before, in the run's own folder
            runs.append(Run(results, settings, running_best(job / "history.csv")))
    if not runs:
        raise ValueError(
            f"no finished search in {', '.join(map(str, folders))}; "
            "give folders that hold a results.json and a history.csv, e.g. outputs/multirun/<sweep>."
        )
    return runs, unfinished


def by_task(runs: list[Run]) -> dict[Task, dict[str, list[Run]]]:
    """The runs of each task by the label of their method, the best networks first.

    The label is the method's name. If agent, importance or recovery differ between the runs of that name, in any task,
    they stand in it, and so do their settings that differ within the task: "gnnrl (importance=l2, agent.lr=0.01)".
    """
    tasks: dict[Task, dict[str, list[Run]]] = {}
    for run in runs:
        label = _label(run, [other for other in runs if other.method == run.method])
        tasks.setdefault(run.task, {}).setdefault(label, []).append(run)
    return {task: dict(sorted(tasks[task].items(), key=_top1, reverse=True)) for task in sorted(tasks)}


def unlike(methods: dict[str, list[Run]]) -> list[str]:
    """Warnings, in sentences: where the runs of one task are not alike, so that a comparison is not quite fair."""
    lines = []
    for part, why in _SHARED.items():
        choices = _by_choice(methods, part)
        if len(choices) > 1:
            lines.append(f"Warning: {why}: {'; '.join(choices)}.")
    trained = [label for label, runs in methods.items() if any(run.results.get("trained_copy") for run in runs)]
    if trained:
        lines.append(
            f"Warning: {', '.join(trained)} trained the network while it was pruned: more than the others did."
        )
    staged = [label for label, runs in methods.items() if any(run.settings.get("stages", "1") != "1" for run in runs)]
    if staged:
        lines.append(
            f"Warning: {', '.join(staged)} searched in stages: evaluations, seconds and curves are of the last one."
        )
    apart = _differences(methods)
    if apart:
        lines.append(f"Warning: not alike in all runs: {'; '.join(apart)}.")
    for label, runs in methods.items():
        if len({run.results["seed"] for run in runs}) < len(runs):
            lines.append(f"Warning: runs of {label} share a seed: {seeds(runs)}.")
    return lines


def seeds(runs: list[Run]) -> str:
    """The seeds of some runs as text, in order."""
    return " ".join(str(seed) for seed in sorted(run.results["seed"] for run in runs))


def _label(run: Run, rivals: list[Run]) -> str:
    """The run's method, and what tells it from others of that name."""
    told = []
    for part in _PARTS:
        if len({other.results[part] for other in rivals}) > 1:
            told.append(f"{part}={run.results[part]}")
        told += _own_settings(run, part, [other for other in rivals if other.task == run.task])
    return f"{run.method} ({', '.join(told)})" if told else run.method


def _own_settings(run: Run, part: str, others: list[Run]) -> list[str]:
    """Its settings of a part in which others that chose the same differ, as typed; of a path the end, if that tells.

    Neither where code lies, which may change with the version, nor a part's seed that is the run's, is such a setting.
    """
    same = [other for other in others if other.results[part] == run.results[part]]
    told = []
    for name, value in run.settings.items():
        known = {other.settings[name] for other in same if name in other.settings}
        seed = all(other.settings.get(name) in (None, str(other.results["seed"])) for other in same)
        if name.startswith(f"{part}.") and not name.endswith("_target_") and len(known) > 1 and not seed:
            ends = {Path(each).name for each in known}
            told.append(f"{name}={Path(value).name if len(ends) == len(known) else value}")
    return told


def _top1(item: tuple[str, list[Run]]) -> float:
    """Sort key: the mean top-1 of a method's final networks on the test images."""
    known = [stage["top1"] for run in item[1] for stage in run.results["stages"][-1:] if stage["top1"] is not None]
    return float(np.mean(known)) if known else -np.inf


def _by_choice(methods: dict[str, list[Run]], part: str) -> list[str]:
    """The choices of a part, with the settings in which equal ones differ, and whose: "bn recovery.images=9 (amc)"."""
    every = [run for runs in methods.values() for run in runs]
    found: dict[str, dict[str, None]] = {}
    for label, runs in methods.items():
        for run in runs:
            found.setdefault(" ".join([str(run.results[part]), *_own_settings(run, part, every)]), {})[label] = None
    return [f"{name} ({', '.join(labels)})" for name, labels in found.items()]


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of nested settings as text, by their dotted names."""
    if not isinstance(node, dict) or not node:
        return {prefix: json.dumps(node) if node is None or isinstance(node, bool) else str(node)}
    joined = (_flat(value, f"{prefix}.{name}".lstrip(".")) for name, value in node.items())
    return {name: value for part in joined for name, value in part.items()}


def _differences(methods: dict[str, list[Run]]) -> list[str]:
    """The settings that should not differ and do, and in whose runs: "episodes 200 (amc) against 208 (4 methods)".

    What a run does not say, because it is older than the setting, is unknown, not different.
    """
    found: dict[str, dict[str, dict[str, None]]] = {}
    for label, runs in methods.items():
        for run in runs:
            for name, value in run.settings.items():
                if name.partition(".")[0] not in (*_PARTS, *_IGNORED):
                    found.setdefault(name, {}).setdefault(value, {})[label] = None

    def whose(labels: Collection[str]) -> str:
        return ", ".join(labels) if len(labels) < 4 else f"{len(labels)} methods"

    return [
        f"{name} " + " against ".join(f"{value} ({whose(labels)})" for value, labels in values.items())
        for name, values in found.items()
        if len(values) > 1
    ]
