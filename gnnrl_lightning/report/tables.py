"""The tables of a search and of a sweep, as text cells, for the terminal and for the page."""

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich import box
from rich.markup import escape
from rich.table import Table

from gnnrl_lightning.core.numbers import MISSING, NO_BREAK, TIMES, faster, fixed, millions, percent, signed
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.report.summary import summary

SPEED_COLUMNS = (
    *("network", "batch", f"median, ms ({TIMES})", "95th percentile, ms", "images per second"),
    *("peak memory, MiB", "weights, MiB"),
)

SETTINGS = ("model", "data", "agent", "importance", "recovery", "cost", "budget", "reward", "reward_split", "seed")

NETWORKS = ("original", "pruned", "finished", "fine_tuned")
"""Networks that a search may measure, as columns name them."""

SWEPT = ("model", "data", "method", *SETTINGS[2:])
"""What jobs of a sweep may differ in; a method (None in results from before there were any) names several at once."""


def settings_of(results: dict[str, Any]) -> dict[str, Any]:
    """The settings `SWEPT` of a run; None where it knows none."""
    protocol = Protocol.of(results)
    return {name: results.get(name) for name in SWEPT} | {"reward": protocol.reward, "reward_split": protocol.split}


def tested(results: dict[str, Any]) -> bool:
    """Whether accuracies on test images are known; a search from Python has rewards alone."""
    return "reward" not in results["networks"][0]


def network_columns(results: dict[str, Any]) -> tuple[str, ...]:
    """Head of the table of networks."""
    worth = f"{Protocol.of(results).accuracy} %" if tested(results) else "reward"
    return "network", worth, "MMACs", "parameters, M", f"latency, ms ({TIMES})"


def network_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Cells of the table of networks, one row for each in the order of `network_columns`."""
    original = results["networks"][0]
    return [
        (
            row["name"],
            fixed(row["top1"], 2) if tested(results) else Protocol.of(results).text(row["reward"]),
            f"{millions(row['macs'])} ({percent(row['macs'] / original['macs'])})",
            f"{millions(row['params'])} ({percent(row['params'] / original['params'])})",
            MISSING
            if row["latency_ms"] is None
            else f"{fixed(row['latency_ms'], 2)} ({faster(row['latency_ratio'], row.get('latency_interval'))})",
        )
        for row in results["networks"]
    ]


def speed_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Cells of the table of measurements, one row per batch size and network in the order of `SPEED_COLUMNS`."""
    original, *_ = measured = list(results["speed"].items())
    return [
        (
            name,
            str(speed["batch"]),
            f"{fixed(speed['median_ms'], 2)} ({faster(speed['ratio'], speed['interval'])})",
            fixed(speed["p95_ms"], 2),
            fixed(speed["images_per_second"], 0),
            f"{fixed(speed['peak_bytes'] / 2**20, 1)} ({percent(speed['peak_bytes'] / first['peak_bytes'])})",
            fixed(results["weight_bytes"][name] / 2**20, 2),
        )
        for index, first in enumerate(original[1])
        for name, of in measured
        for speed in of[index : index + 1]
    ]


def check_columns(results: dict[str, Any]) -> tuple[str, ...]:
    """Head of the table of the budget's check."""
    check = results["budget_check"]
    return check["quantity"], f"original, {check['unit']}", f"pruned, {check['unit']}", "ratio", "ratios differ by"


def check_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """What the budget counted, against what was measured, in the order of `check_columns`."""
    check = results["budget_check"]
    rows = {"counted by the budget": check["predicted"], "measured": check["measured"]}
    counted, measured = (pruned / original for original, pruned in rows.values())
    difference = f"{signed(100 * (counted / measured - 1), 1)}{NO_BREAK}%"
    return [
        (name, fixed(original, 2), fixed(pruned, 2), percent(pruned / original), cell)
        for (name, (original, pruned)), cell in zip(rows.items(), (difference, ""), strict=True)
    ]


def recovery_columns(results: dict[str, Any]) -> tuple[str, ...]:
    """Head of the table of the fine-tuning."""
    return "images seen", f"{Protocol.of(results).accuracy} %"


def recovery_rows(curve: list[dict[str, float]]) -> list[tuple[str, ...]]:
    """Accuracy on the reward split during the fine-tuning, in the order of `recovery_columns`."""
    return [(f"{point['images']:,.0f}", fixed(point["top1"], 2)) for point in curve]


def network_table(results: dict[str, Any]) -> Table:
    """The table at the end of a search: the network before, after pruning and after fine-tuning."""
    table = Table(
        title=escape(f"{results['model']} on {results['data']}"),
        caption=escape("\n".join([*summary(results), *Protocol.of(results).notes])),
        title_style="bold",
        caption_style="",
    )
    for column in network_columns(results):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in network_rows(results):
        table.add_row(*row)
    return table


def top1_table(results: dict[str, Any]) -> Table:
    """The table at the end of a training: accuracy before and after, on both splits that it did not train on."""
    protocol = Protocol.of(results)
    table = Table(
        title=escape(f"{results['model']} on {results['data']}"),
        caption=escape("\n".join(protocol.notes)) or None,
        title_style="bold",
        caption_style="",
    )
    table.add_column("network")
    for split in ("reward", "test"):
        table.add_column(f"{split} {protocol.accuracy} %", justify="right")
    for name, of in results["top1"].items():
        table.add_row(name, fixed(of["reward"], 2), fixed(of["test"], 2))
    return table


def sweep_jobs(folder: Path) -> dict[Path, dict[str, Any] | None]:
    """The searches in `folder` and what is in their results.json, None if they did not end; in the folders' order."""
    # A job's own stages are no jobs.
    found = (path for path in folder.rglob("results.json") if "stages" not in path.relative_to(folder).parts)
    jobs = {path.parent for path in found}
    jobs |= {path.parent.parent for path in folder.rglob(".hydra/overrides.yaml")}
    files = {job: job / "results.json" for job in sorted(jobs, key=_natural)}
    read = {
        job: json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None for job, file in files.items()
    }
    # What a train.py wrote compares no networks.
    return {job: results for job, results in read.items() if results is None or "networks" in results}


def named_settings(job: Path) -> dict[str, str]:
    """Which of the settings `SWEPT` a job's command line named."""
    overrides = OmegaConf.load(job / ".hydra" / "overrides.yaml")
    named = dict(str(override).partition("=")[::2] for override in overrides)
    return {name: value for name, value in named.items() if name in SWEPT}


def sweep_rows(folder: Path) -> list[dict[str, Any]]:
    """One row per job of a sweep, in the order of its folders; numbers, not text, ready for a CSV file.

    A job without results.json gets `status` "failed" and those settings that its command line named.
    """
    return [_sweep_row(job, results, folder) for job, results in sweep_jobs(folder).items()]


def sweep_table(rows: list[dict[str, Any]]) -> Table:
    """One row per job; settings that all jobs share stand in the caption, so that the table stays narrow.

    So does which images rewards and accuracies are from.
    """
    # What a failed job did not say on its command line is unknown, not different.
    values = {name: {str(row[name]) for row in rows if row[name] is not None} for name in SWEPT}
    varied = [name for name in SWEPT if len(values[name]) > 1]
    shared = [f"{name} {value}" for name in SWEPT if len(values[name]) == 1 for value in values[name]]
    notes = dict.fromkeys(note for row in rows for note in row["notes"].splitlines())
    accuracy = " or ".join(dict.fromkeys(row["accuracy"] for row in rows if row["accuracy"])) or Protocol().accuracy
    table = Table(
        title=f"{len(rows)} jobs",
        caption=escape("\n".join([", ".join(shared), *notes])),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_style="bold",
        caption_style="",
    )
    for name in varied:
        table.add_column(name, overflow="fold")
    for name in (
        f"{accuracy} %\noriginal",
        "\npruned",
        "\nfinished",
        "\nfine-tuned",
        "cost\n%",
        "params\n%",
        "speed\n" + TIMES,
    ):
        table.add_column(name, justify="right")
    table.add_column("folder", overflow="fold")
    for row in rows:
        cells = [MISSING if row[name] is None else escape(str(row[name])) for name in varied]
        if row["status"] == "failed":
            cells += ["[bold red]failed[/]", *[MISSING] * (len(NETWORKS) + 2)]
        else:
            cells += [fixed(row[f"top1_{name}"], 2) for name in NETWORKS]
            cells += [
                fixed(row["cost_percent"], 1),
                fixed(row["params_percent"], 1),
                faster(row["latency_ratio"]),
            ]
        table.add_row(*cells, escape(row["folder"]))
    return table


def _sweep_row(job: Path, results: dict[str, Any] | None, sweep: Path) -> dict[str, Any]:
    """The columns of summary.csv, in their order."""
    numbers = (
        "cost_percent",
        "macs",
        "macs_percent",
        "params",
        "params_percent",
        "latency_ms",
        "latency_ratio",
    )
    row: dict[str, Any] = {"folder": job.relative_to(sweep).as_posix(), "status": "failed"}
    row |= dict.fromkeys([*SWEPT, *(f"top1_{name}" for name in NETWORKS), *numbers])
    row |= {"accuracy": None, "notes": ""}
    if results is None:
        return row | named_settings(job)
    original, *_, last = results["networks"]
    cost = results["cost_values"]
    return (
        row
        | {"status": "done"}
        | settings_of(results)
        | {"accuracy": Protocol.of(results).accuracy, "notes": "\n".join(Protocol.of(results).notes)}
        | {key: top1 for key, top1 in _accuracies(results).items() if key in row}
        | {name: last[name] for name in ("macs", "params", "latency_ms", "latency_ratio")}
        | {f"{name}_percent": 100 * last[name] / original[name] for name in ("macs", "params")}
        | {"cost_percent": 100 * cost["used"] / cost["original"]}
    )


def _accuracies(results: dict[str, Any]) -> dict[str, float]:
    return {f"top1_{row['name'].replace('-', '_')}": row["top1"] for row in results["networks"]}


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key with which folder 10 follows folder 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]
