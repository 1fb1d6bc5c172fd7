"""The figure of the error curves: what every channel group loses at every width, and where the found network lies."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gnnrl_lightning.core.numbers import percent
from gnnrl_lightning.report.record import ErrorCurve
from gnnrl_lightning.report.style import BLUE, INK, ORANGE, VERMILLION

DECADES = 5
"""How far the colours reach below the largest error; what is less is white."""
_FRACTIONS = np.linspace(0, 1, 201)
_TINY = 1e-30
_ROW = 0.17
"""Inches a group, which its name in 8 points needs."""


def error_figure(curves: list[ErrorCurve]) -> Figure:
    """A row of colours for each group, from no channels to all, beside its share of the found network's error."""
    rows = np.arange(len(curves))
    colours = np.array([np.take(each.errors, (_FRACTIONS * each.width).round().astype(int)) for each in curves])
    found = np.array([each.errors[each.kept] for each in curves])
    uniform = np.array([each.errors[each.uniform] for each in curves])
    height = 1.9 + max(1.4, _ROW * len(curves))
    figure = Figure(figsize=(10, height), layout="constrained")
    figure.suptitle(_message(float(found.sum()), float(uniform.sum())), wrap=True)
    axes, bars = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    largest = float(max(colours.max(), _TINY))  # a logarithm needs one above 0
    image = axes.imshow(
        np.clip(colours, largest / 10**DECADES, None),
        aspect="auto",
        interpolation="nearest",
        extent=(0, 100, len(curves) - 0.5, -0.5),
        cmap="Blues",
        norm=LogNorm(largest / 10**DECADES, largest),
    )
    axes.plot(
        [100 * each.uniform / each.width for each in curves],
        rows,
        linestyle="none",
        marker="|",
        markersize=9,
        markeredgewidth=2,
        color=ORANGE,
        label="uniform widths at the same budget",
    )
    axes.plot(
        [100 * each.kept / each.width for each in curves],
        rows,
        linestyle="none",
        marker="o",
        markersize=6.5,
        markeredgecolor="white",
        color=VERMILLION,
        label="found network",
    )
    axes.set_xlabel("channels kept, %")
    axes.set_xlim(0, 101.5)  # a mark at the end is seen whole
    axes.set_yticks(rows, [each.name for each in curves], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.hlines(rows[1:] - 0.5, 0, 100, color="white", linewidth=0.8)
    share = 100 * found / max(found.sum(), _TINY)
    bars.barh(rows, share, height=0.7, color=BLUE)
    bars.set_xlabel("share of the found\nnetwork's error, %")
    bars.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
    bars.tick_params(axis="y", length=0)
    for each in (axes, bars):
        each.grid(visible=False, axis="y")
    axes.grid(visible=False, axis="x")
    bar = figure.colorbar(
        image, ax=[axes, bars], pad=0.01, aspect=max(12, 5 * height), extend="min", format=lambda x, _: f"{x:g}"
    )
    bar.set_label("change of the scores, mean square", color=INK)
    bar.outline.set_visible(False)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _message(found: float, uniform: float) -> str:
    if not uniform:  # the budget lets everything stay
        return "What each group's channels are worth to the network's scores"
    return f"By the error curves, the found network loses {percent(found / uniform, 0)} of what uniform widths lose"
