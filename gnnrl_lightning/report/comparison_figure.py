"""The figure of a comparison: the best reward so far over the evaluations, mean and spread of each method."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gnnrl_lightning.core.numbers import NO_BREAK, fixed
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.report.style import GREY, METHODS, ORANGE, STYLE, SavedFigure, write_figure

Curves = dict[str, list[np.ndarray]]
"""Of each method, one curve per run: the best reward after each evaluation, [E]."""

_COLOURS = (*METHODS, ORANGE)
_LINES = ("-", (0, (5, 1.5, 1, 1.5)), (0, (1, 1)))


def save_comparison_figure(tasks: dict[str, Curves], folder: Path, protocols: dict[str, Protocol]) -> SavedFigure:
    """Draws the learning curves, one plot per task, and writes comparison.png and comparison.svg to `folder`.

    The line is the mean over a method's runs, the band its sample standard deviation. A method that proposes a single
    network is a level: dashed, over the whole axis. What the rewards of each task are, its protocol says.
    """
    with matplotlib.rc_context(STYLE):
        columns = 2 if len(tasks) == 4 else min(len(tasks), 3)
        rows = -(-len(tasks) // columns)
        size = (10, 5.5) if len(tasks) == 1 else (4 * columns + 0.5, 3.2 * rows + 1)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(_message(tasks, protocols), wrap=True)
        labels = dict.fromkeys(label for curves in tasks.values() for label in curves)
        styles = dict(zip(labels, line_styles(), strict=False))
        places = figure.subplots(rows, columns, squeeze=False).flat
        lines: dict[str, Line2D] = {}
        for number, ((title, curves), axes) in enumerate(zip(tasks.items(), places, strict=False)):
            lines |= draw_curves(axes, curves, styles, protocols[title].step)
            axes.set_title(title if len(tasks) > 1 else "", fontsize=10)
            axes.set_xlabel("evaluations (networks tested)")
            same = number % columns and len({of.axis for of in protocols.values()}) == 1
            axes.set_ylabel("" if same else f"best reward so far = {protocols[title].axis}")
        for axes in places:
            axes.remove()
        handles: list[Artist] = [lines[label] for label in labels]
        if any(len(of) > 1 for curves in tasks.values() for of in curves.values()):
            handles.append(Patch(color=GREY, alpha=0.3, linewidth=0, label="± standard deviation"))
        # A letter is 0.08 inches wide, and a line with its margins 0.8.
        wide = max(len(str(handle.get_label())) for handle in handles)
        fitting = int(size[0] / (0.08 * wide + 0.8))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(max(fitting, 1), 5), handlelength=3)
        return write_figure(figure, folder, "comparison")


def line_styles() -> Iterator[tuple[str, Any]]:
    """Colours and dashes, one pair a method: 21 that differ, then from the start."""
    return cycle((colour, line) for line in _LINES for colour in _COLOURS)


def padded(curves: list[np.ndarray]) -> np.ndarray:
    """Curves of unequal length as one array [runs, longest]: a run that has ended keeps its last best."""
    longest = max(map(len, curves))
    return np.stack([np.pad(curve, (0, longest - len(curve)), mode="edge") for curve in curves])


def limits(bands: list[tuple[np.ndarray, np.ndarray, np.ndarray]], step: float = 1.0) -> tuple[float, float]:
    """The y axis: where every band ends, and the way there, unless its start would flatten the rest.

    The first evaluations of a method that draws blindly can be far below all that comes later: the lowest twentieth of
    the means is left out if the axis shrinks by 40 % or more without it.

    Args:
        bands: The lower edge, the mean and the upper edge of each method, all [E].
        step: A round difference; half of it is shown beyond the bands at least.
    """
    means = np.concatenate([mean for _, mean, _ in bands])
    top = max(high.max() for *_, high in bands)
    ends = min(low[-1] for low, *_ in bands)
    whole, short = (min(low, ends) for low in (means.min(), np.quantile(means, 0.05)))
    bottom = short if top - short <= 0.6 * (top - whole) else whole
    margin = max(0.04 * (top - bottom), 0.5 * step)
    return bottom - margin, top + margin


def draw_curves(axes: Axes, curves: Curves, styles: dict[str, tuple[str, Any]], step: float = 1.0) -> dict[str, Line2D]:
    """Draws one task; returns the line of each method. A curve that ends before the others ends in a dot."""
    tables = {label: padded(of) for label, of in curves.items()}
    longest = max(2, *(table.shape[1] for table in tables.values()))
    bands, lines = [], {}
    for label, table in tables.items():
        level = table.shape[1] == 1
        table = np.repeat(table, longest, axis=1) if level else table
        number, mean = np.arange(1, table.shape[1] + 1), table.mean(axis=0)
        spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros_like(mean)
        colour, style = styles[label]
        low, high = mean - spread, mean + spread
        bands.append((low, mean, high))
        axes.fill_between(number, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
        (lines[label],) = axes.step(
            number, mean, where="post", color=colour, linestyle="--" if level else style, linewidth=1.8, label=label
        )
        if not level and len(mean) < longest:
            axes.plot(number[-1:], mean[-1:], marker="o", markersize=4, color=colour)
    axes.set_xlim(1, longest)
    axes.set_ylim(*limits(bands, step))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.ticklabel_format(useOffset=False)
    return lines


def _message(tasks: dict[str, Curves], protocols: dict[str, Protocol]) -> str:
    """What the figure says: who ends highest, or for several tasks what is drawn."""
    if len(tasks) > 1:
        return "The best reward so far, by the number of networks tested"
    ((title, curves),) = tasks.items()
    ends = {label: padded(of)[:, -1] for label, of in curves.items()}
    best = max(ends, key=lambda label: float(ends[label].mean()))
    of = protocols[title]
    return f"{title}: {best} ends highest, at {fixed(float(ends[best].mean()), of.digits)}{NO_BREAK}{of.unit}"
