"""The figure of a sweep: what each job's network costs and how good it is."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gnnrl_lightning.report.figures import pareto_front
from gnnrl_lightning.report.style import INK, METHODS, ORANGE, STYLE, write_figure


def save_sweep_figure(rows: list[dict[str, Any]], folder: Path) -> bool:
    """Draws the networks of a sweep by multiply-accumulates and test accuracy, with the Pareto front of all.

    Args:
        rows: What `sweep_rows` gives.
        folder: Where summary.png and summary.svg go.

    Returns:
        Whether there was something to draw: a job that has been tested.
    """
    done = [row for row in rows if row["status"] == "done" and _top1(row) is not None]
    if not done:
        return False
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 5.5), layout="constrained")
        axes = figure.subplots()
        figure.suptitle(f"{len(done)} pruned networks, and what they were before")
        keys = [name for name in ("model", "method", "agent") if len({row[name] for row in done}) > 1] or ["model"]
        kinds = list(dict.fromkeys(tuple(str(row[key]) for key in keys) for row in done))
        for number, kind in enumerate(kinds):
            of = [row for row in done if tuple(str(row[key]) for key in keys) == kind]
            colour = METHODS[number % len(METHODS)]
            axes.scatter(*_points(of), s=36, color=colour, label=", ".join(kind))
            before = [row["macs"] / row["macs_percent"] / 1e4 for row in of]
            top1 = [row["top1_original"] for row in of]
            axes.scatter(before, top1, s=60, marker="s", facecolors="none", edgecolors=colour)
        cost, accuracy = _points(done)
        front = pareto_front(cost, accuracy)
        axes.step(
            cost[front], accuracy[front], where="post", color=ORANGE, linewidth=1.5, zorder=0, label="Pareto front"
        )
        axes.scatter([], [], s=60, marker="s", facecolors="none", edgecolors=INK, label="before pruning")
        axes.set_xlabel("multiply-accumulates, million")
        axes.set_ylabel(f"{' or '.join(dict.fromkeys(row['accuracy'] for row in done))} on the test images, %")
        axes.ticklabel_format(useOffset=False)
        figure.legend(loc="outside lower center", ncols=4)
        write_figure(figure, folder, "summary")
    return True


def _points(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Million multiply-accumulates and test accuracy of the final networks."""
    return np.array([row["macs"] / 1e6 for row in rows]), np.array([_top1(row) for row in rows], dtype=float)


def _top1(row: dict[str, Any]) -> float | None:
    """Of the final network: after fine-tuning where there was any."""
    value: float | None = row["top1_fine_tuned"] if row["top1_fine_tuned"] is not None else row["top1_pruned"]
    return value
