"""Compares methods that searched under the same conditions: means over seeds as a table, learning curves as a figure.

A sweep over methods ends with it. From the folders of finished searches, wherever they lie, it is made by

    python -m gnnrl_lightning.report.comparison FOLDER [FOLDER ...] --out FOLDER
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.files import write_csv, write_text
from gnnrl_lightning.core.numbers import MINUS, NO_BREAK, fixed
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.report.comparison_figure import save_comparison_figure
from gnnrl_lightning.report.comparison_methods import by_task, seeds, unequal_settings
from gnnrl_lightning.report.comparison_runs import Run, Task, evaluations_until, read_runs


@dataclass(frozen=True)
class Column:
    """A quantity of the table."""

    name: str
    """In comparison.csv, with `_mean` and `_std`."""
    title: str
    """With what the task's protocol calls things."""
    digits: int | None
    """None: those of a reward."""
    of: Callable[[Run], float | None]


def _finished(run: Run) -> float | None:
    """Top-1 after the finish, which may have left the network as it was; None where there was none."""
    if not run.results.get("finish"):
        return None
    top1 = run.top1("finished")
    return run.top1("pruned") if top1 is None else top1


COLUMNS = (
    Column("best_reward", "best\nreward, {unit}", None, lambda run: float(run.curve[-1])),
    Column(
        "winner_reward", "winner's reward,\nwhole split, {unit}", None, lambda run: run.results["reward"]["whole_split"]
    ),
    Column("top1_pruned", "test {accuracy}\npruned, %", 2, lambda run: run.top1("pruned")),
    Column("top1_finished", "test {accuracy}\nfinished, %", 2, _finished),
    Column("top1_fine_tuned", "test {accuracy}\nfine-tuned, %", 2, lambda run: run.top1("fine-tuned")),
    Column("evaluations", "evaluations", 0, lambda run: len(run.curve)),
    Column("search_seconds", "search, s", 0, lambda run: run.results["seconds"]["search"]),
    Column(
        "evaluations_to_99", "evaluations\nto 99 %", 0, lambda run: evaluations_until(run.curve, protocol=run.protocol)
    ),
)

_TOP1 = f"{MINUS}(top-1 error in %)"
_KL = f"{MINUS}KL divergence from the unpruned network's scores in nats"
_IMAGES = "images held out of the training images"
_TO_99 = "until the best accuracy, 100 + reward, is 99 % of what it is at the run's end"

LEGEND = (
    f"Mean ± sample standard deviation over the runs; no spread for a single one. Reward: {_TOP1} on "
    f"{_IMAGES}: the best of a run on those that the search sees, the winner's on the "
    "whole split. Evaluations: networks that the search tested; neither one proposed again counts, nor that up to "
    f"`finalists` of them are tested again, on the whole split. To 99 %: {_TO_99}. Sorted by the top-1 of the final "
    "networks."
)


def legend(tasks: Iterable[Task]) -> str:
    """What the numbers of the tables are."""
    kinds, splits = ({getattr(task, name) for task in tasks} for name in ("reward", "reward_split"))
    lines = LEGEND
    if kinds != {"top1"}:
        lines = lines.replace(_TOP1, _KL if kinds == {"kl"} else f"{_TOP1}, or with reward=kl {_KL}")
        shares = "until exp(reward) is 99 % of what it is at the run's end, which is within 0.01 nats"
        lines = lines.replace(_TO_99, shares if kinds == {"kl"} else f"{_TO_99}; with reward=kl {shares}")
    if not all(task.labels for task in tasks):
        lines = lines.replace("Sorted by the top-1", "Sorted by the accuracy")
    if splits != {"train"}:
        lines = lines.replace(_IMAGES, "images that are apart from the test's")
    return lines


def mean_std(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1); no mean if a value is missing, no deviation of a single one."""
    known = []
    for value in values:
        if value is None:
            return None, None
        known.append(value)
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def comparison_rows(tasks: dict[Task, dict[str, list[Run]]]) -> list[dict[str, Any]]:
    """One row per task and method: numbers, not text, the columns of comparison.csv in their order."""
    rows = []
    for task, methods in tasks.items():
        for label, runs in methods.items():
            row = {**task._asdict(), "method": label, "runs": len(runs), "seeds": seeds(runs)}
            for column in COLUMNS:
                mean, std = mean_std(column.of(run) for run in runs)
                row |= {f"{column.name}_mean": mean, f"{column.name}_std": std}
            rows.append(row)
    return rows


def notes(methods: dict[str, list[Run]]) -> list[str]:
    """What stands below the table of one task: what the network was before, and where its runs are not alike."""
    mean, std = mean_std(run.top1("original") for runs in methods.values() for run in runs)
    before = _cell(mean, std or None, 2)  # one network, or one per seed
    said = dict.fromkeys(note for runs in methods.values() for run in runs for note in run.protocol.notes)
    accuracy = next(iter(methods.values()))[0].protocol.accuracy
    return [
        f"Test {accuracy} of the unpruned network: {before}{NO_BREAK}%.",
        *levels(methods),
        *said,
        *unequal_settings(methods),
    ]


def levels(methods: dict[str, list[Run]]) -> list[str]:
    """Where the searches of one task began, as a sentence for each level; nothing where no run has it.

    Rewards depend on importance and recovery, so each method has its own.
    """
    lines = []
    for name, meaning in (("uniform", "uniform widths"), ("closed_form", "the best plan in closed form")):
        found: dict[str, list[str]] = {}
        for label, runs in methods.items():
            own = [run.results.get("levels", {}).get(name) for run in runs]
            mean, std = mean_std(own)
            if mean is not None:
                found.setdefault(_cell(mean, std or None, runs[0].protocol.digits), []).append(label)
        if found:
            told = "; ".join(f"{cell} ({', '.join(labels)})" for cell, labels in found.items())
            lines.append(f"Reward of {meaning}, before the search: {told}.")
    return lines


def comparison_table(title: str, rows: list[dict[str, Any]], below: list[str]) -> Table:
    """The table of one task for the terminal."""
    table = Table(
        title=escape(title),
        caption=escape("\n".join(below)),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_style="bold",
        caption_style="",
    )
    columns = _columns(rows)
    for head in _heads(rows[0], columns):
        method = head == "method"
        table.add_column(head, justify="left" if method else "right", overflow="fold", no_wrap=not method)
    for row in rows:
        table.add_row(*map(escape, _cells(row, columns)))
    return table


def markdown_table(title: str, rows: list[dict[str, Any]], below: list[str]) -> str:
    """The table of one task for a page such as docs/results.md."""
    columns = _columns(rows)
    heads = [head.replace("\n", " ") for head in _heads(rows[0], columns)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *(_cells(row, columns) for row in rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([f"**{title}**", table, *below])


def compare(tasks: dict[Task, dict[str, list[Run]]], unfinished: list[str], out: Path, console: Console) -> None:
    """Prints the comparison of searches, writes comparison.csv and .md to `out`, .png and .svg too.

    Args:
        tasks: From `by_task`.
        unfinished: Names of searches that did not end, from `read_runs`.
        out: The folder.
        console: Where the tables go.
    """
    rows = comparison_rows(tasks)
    write_csv(out / "comparison.csv", rows, list(rows[0]))
    last = [legend(tasks), *([f"Left out, not finished: {', '.join(unfinished)}."] if unfinished else [])]
    parts = []
    for task, methods in tasks.items():
        own = [row for row in rows if all(row[name] == value for name, value in task._asdict().items())]
        below = notes(methods)
        console.print(comparison_table(str(task), own, below), "")
        parts.append(markdown_table(str(task), own, below))
    for line in last:
        console.print(line, markup=False, highlight=False)
    write_text(out / "comparison.md", "\n\n".join([*parts, *last]) + "\n")
    curves = {
        str(task): {label: [run.curve for run in each] for label, each in methods.items()}
        for task, methods in tasks.items()
    }
    protocols = {str(task): next(iter(methods.values()))[0].protocol for task, methods in tasks.items()}
    save_comparison_figure(curves, out, protocols)
    console.print(f"Comparison written to {out / 'comparison.md'}, .csv and .png", markup=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line; what the user got wrong is told in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m gnnrl_lightning.report.comparison",
        description="Compares the finished searches in some folders: comparison.csv, .md, .png and .svg.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="runs or sweeps, searched recursively")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where the files go")
    given = parser.parse_args(arguments)
    try:
        runs, unfinished = read_runs(given.folders)
    except UserError as error:
        sys.exit(f"error: {error}")
    # A file has no width of its own, and rich's 80 columns would break the rows.
    console = Console(width=None if sys.stdout.isatty() else 140)
    compare(by_task(runs), unfinished, given.out, console)


def _protocol(row: dict[str, Any]) -> Protocol:
    return Protocol(row["reward"], row["reward_split"], row["labels"])


def _columns(rows: list[dict[str, Any]]) -> list[Column]:
    """The columns of a table; none for a stage that no network went through."""
    stages = {"top1_finished", "top1_fine_tuned"}
    return [c for c in COLUMNS if c.name not in stages or any(row[f"{c.name}_mean"] is not None for row in rows)]


def _heads(row: dict[str, Any], columns: list[Column]) -> list[str]:
    """The heads of the table of a row's task."""
    protocol = _protocol(row)
    named = [column.title.format(unit=protocol.unit, accuracy=protocol.accuracy) for column in columns]
    return ["method", "runs", *named]


def _cells(row: dict[str, Any], columns: list[Column]) -> list[str]:
    """A row's text in the order of `_heads`."""
    of_reward = _protocol(row).digits
    numbers = (
        _cell(row[f"{each.name}_mean"], row[f"{each.name}_std"], of_reward if each.digits is None else each.digits)
        for each in columns
    )
    return [row["method"], str(row["runs"]), *numbers]


def _cell(mean: float | None, std: float | None, digits: int) -> str:
    """The mean, and its spread where there is one."""
    return fixed(mean, digits) if std is None else f"{fixed(mean, digits)} ± {fixed(std, digits)}"


if __name__ == "__main__":
    main()
