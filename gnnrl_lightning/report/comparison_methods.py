"""Finished searches told apart by method, and checked for being alike."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from gnnrl_lightning.report.comparison_runs import Run, Task

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


def by_task(runs: list[Run]) -> dict[Task, dict[str, list[Run]]]:
    """The runs of each task by the label of their method, the best networks first.

    The label is the method's name. If agent, importance or recovery differ between the runs of that name, in any task,
    they stand in it, and so do their settings that differ within the task: "gnnrl (importance=l2, agent.lr=0.01)".
    Runs that share all this and a seed repeat nothing: whatever differs among them stands in it too, "episodes=400".
    """
    kinds: dict[tuple[Task, str, tuple[str, ...]], list[Run]] = {}
    for run in runs:
        told = _parts(run, [other for other in runs if other.method == run.method])
        kinds.setdefault((run.task, run.method, tuple(told)), []).append(run)
    tasks: dict[Task, dict[str, list[Run]]] = {}
    for (task, method, parts), alike in kinds.items():
        names = _apart_in_a_seed(alike)
        for run in alike:
            every = [*parts, *(text for name in names for text in _as_typed(run, name, alike))]
            label = f"{method} ({', '.join(every)})" if every else method
            tasks.setdefault(task, {}).setdefault(label, []).append(run)
    return {task: dict(sorted(tasks[task].items(), key=_top1, reverse=True)) for task in sorted(tasks)}


def unequal_settings(methods: dict[str, list[Run]]) -> list[str]:
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


def _parts(run: Run, rivals: list[Run]) -> list[str]:
    """What tells its agent, importance and recovery from those of others of that name."""
    told = []
    for part in _PARTS:
        if len({other.results[part] for other in rivals}) > 1:
            told.append(f"{part}={run.results[part]}")
        told += _own_settings(run, part, [other for other in rivals if other.task == run.task])
    return told


def _own_settings(run: Run, part: str, others: list[Run]) -> list[str]:
    """Its settings of a part in which others that chose the same differ.

    Neither where code lies, which may change with the version, nor a part's seed that is the run's, is such a setting.
    """
    same = [other for other in others if other.results[part] == run.results[part]]
    told = []
    for name in run.settings:
        seed = all(other.settings.get(name) in (None, str(other.results["seed"])) for other in same)
        if name.startswith(f"{part}.") and not name.endswith("_target_") and not seed:
            told += _as_typed(run, name, same)
    return told


def _apart_in_a_seed(runs: list[Run]) -> list[str]:
    """Names of the settings in which runs with one seed differ; those of the three parts are told already."""
    values: dict[str, dict[int, set[str]]] = {}
    for run in runs:
        for name, value in run.settings.items():
            if name.partition(".")[0] not in (*_PARTS, *_IGNORED, "device"):
                values.setdefault(name, {}).setdefault(run.results["seed"], set()).add(value)
    return [name for name, of_seed in values.items() if any(len(each) > 1 for each in of_seed.values())]


def _as_typed(run: Run, name: str, others: list[Run]) -> list[str]:
    """The setting as it would be typed, if others have other values; of a path the end, if that tells."""
    known = {other.settings[name] for other in others if name in other.settings}
    if len(known) < 2 or name not in run.settings:
        return []
    ends = {Path(each).name for each in known}
    value = run.settings[name]
    return [f"{name}={Path(value).name if len(ends) == len(known) else value}"]


def _top1(item: tuple[str, list[Run]]) -> float:
    """Sort key: the mean top-1 of a method's final networks on the test images."""
    found = [row["top1"] for run in item[1] for row in run.results["networks"][-1:] if row["top1"] is not None]
    return float(np.mean(found)) if found else -np.inf


def _by_choice(methods: dict[str, list[Run]], part: str) -> list[str]:
    """The choices of a part, with the settings in which equal ones differ, and whose: "bn recovery.images=9 (amc)"."""
    every = [run for runs in methods.values() for run in runs]
    found: dict[str, dict[str, None]] = {}
    for label, runs in methods.items():
        for run in runs:
            found.setdefault(" ".join([str(run.results[part]), *_own_settings(run, part, every)]), {})[label] = None
    return [f"{name} ({', '.join(labels)})" for name, labels in found.items()]


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
