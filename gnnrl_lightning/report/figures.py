"""The figures of a search: reward per episode, kept channels per group, cost against accuracy."""

from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gnnrl_lightning.core.numbers import fixed, millions, percent
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.report.error_figure import error_figure
from gnnrl_lightning.report.record import Record
from gnnrl_lightning.report.recovery_figure import recovery_figure
from gnnrl_lightning.report.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    STYLE,
    VERMILLION,
    SavedFigure,
    new_figure,
    write_figure,
)
from gnnrl_lightning.report.topology_figure import topology_figure

BARS_PER_ROW = 40
MANY_POINTS = 2000


def save_figures(record: Record, folder: Path) -> dict[str, SavedFigure]:
    """Draws the figures and writes each to `folder` as PNG and SVG.

    Returns:
        `reward`, `groups` and `cost`; `recovery` if the network was fine-tuned, `topology` if its layers are known and
        `error_curves` if there are any.
    """
    with matplotlib.rc_context(STYLE):
        figures = {"reward": reward_figure(record), "groups": groups_figure(record), "cost": cost_figure(record)}
        if record.recovery:
            figures["recovery"] = recovery_figure(record)
        if record.layers:
            figures["topology"] = topology_figure(record.layers)
        if record.curves:
            figures["error_curves"] = error_figure(record.curves)
        return {name: write_figure(figure, folder, name) for name, figure in figures.items()}


def reward_figure(record: Record) -> Figure:
    """Reward of each episode as a dot, the best so far as a line, and levels: of uniform widths, closed form, best."""
    number = np.array([episode.number for episode in record.episodes])
    reward = np.array([episode.reward for episode in record.episodes])
    running = np.array([episode.best_reward for episode in record.episodes])
    best, protocol = record.best, Protocol.of(record.results)
    figure, axes = new_figure(
        f"Best reward {protocol.text(best.reward)} at episode {best.number} "
        f"({_plural(record.results['evaluations'], 'network')} tested in {_plural(len(reward), 'episode')})",
    )
    _scatter(axes, number, reward, protocol)
    axes.step(number, running, where="post", color=VERMILLION, linewidth=2, label="best so far")
    whole = record.results["reward"]["whole_split"]
    axes.axhline(
        whole,
        color=GREEN,
        linestyle="--",
        linewidth=1.5,
        label=f"chosen plan on the whole reward split: {protocol.text(whole)}",
    )
    _include(axes, whole)
    _levels(axes, record.results.get("levels", {}), protocol)
    # Wide and pale: it may lie on another level.
    label = f"best: {protocol.text(best.reward)}"
    axes.axhline(best.reward, color=VERMILLION, linewidth=5, alpha=0.2, zorder=1, label=label)
    margin = 0.5 + 0.015 * len(number)
    axes.set_xlim(number.min() - margin, number.max() + margin)
    axes.set_xlabel("episode")
    axes.set_ylabel(f"reward = {protocol.axis}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def groups_figure(record: Record) -> Figure:
    """Kept ratio of each channel group in network order, in as many rows as keep every name readable."""
    groups = record.groups
    rows = -(-len(groups) // BARS_PER_ROW)
    per_row = -(-len(groups) // rows)
    kept = sum(group.kept for group in groups) / sum(group.width for group in groups)
    least = min(groups, key=lambda group: group.ratio)
    most = max(groups, key=lambda group: group.ratio)
    mean = sum(group.ratio for group in groups) / len(groups)
    # The names stand upright below the bars, 0.075 inches a letter.
    height = 2.4 + 0.075 * max(len(group.name) for group in groups)
    figure = Figure(figsize=(min(10, 5 + 0.2 * per_row), 0.8 + height * rows), layout="constrained")
    figure.suptitle(
        f"{percent(kept, 0)} of the channels stay: from {percent(least.ratio, 0)} in {least.name} "
        f"to {percent(most.ratio, 0)} in {most.name}",
        wrap=True,
    )
    for row, axes in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        part = groups[row * per_row : (row + 1) * per_row]
        place = np.arange(len(part))
        axes.bar(place, 100, width=0.8, color=PALE, label="removed")
        axes.bar(place, [100 * group.ratio for group in part], width=0.8, color=BLUE, label="kept")
        axes.axhline(100 * mean, color=ORANGE, linewidth=2, label=f"mean of the groups: {percent(mean, 0)}")
        axes.set_xlim(-0.6, per_row - 0.4)
        axes.set_ylim(0, 100)
        axes.set_ylabel("channels kept, %")
        axes.set_xticks(place, [group.name for group in part], rotation=90, fontsize=8)
        axes.grid(visible=False, axis="x")
        axes.tick_params(axis="x", length=0)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=3)
    return figure


def cost_figure(record: Record) -> Figure:
    """Cost against accuracy on the reward images for every episode, with the Pareto front and the budget.

    Where rewards are no accuracies, they are shown as they are.
    """
    cost = 100 * np.array([episode.cost_ratio for episode in record.episodes])
    reward = np.array([episode.reward for episode in record.episodes])
    budget = 100 * record.results["allowed"]["fraction"]
    chosen, protocol = record.chosen, Protocol.of(record.results)
    above = 100 if protocol.top1 else 0
    figure, axes = new_figure(
        f"The chosen plan scores {protocol.text(above + chosen.reward)} on the reward images "
        f"at {percent(chosen.cost_ratio, 2)} of the cost"
    )
    _scatter(axes, cost, above + reward, protocol)
    front = pareto_front(cost, reward)
    axes.step(
        [*cost[front], budget],
        [*(above + reward[front]), above + reward.max()],
        where="post",
        markevery=range(len(front)),
        color=ORANGE,
        linewidth=1.5,
        marker="o",
        markersize=6,
        markerfacecolor="none",
        label="Pareto front",
    )
    axes.plot(
        [100 * chosen.cost_ratio],
        [above + chosen.reward],
        linestyle="none",
        marker="*",
        markersize=16,
        color=VERMILLION,
        markeredgecolor="white",
        label="chosen plan",
        zorder=4,
    )
    axes.axvline(budget, color=GREEN, linestyle="--", linewidth=1.5, label=f"budget: {fixed(budget, 1)} %")
    # All episodes land just below the budget: at least half a point is shown, so that the axis does not
    # blow up differences of single channels.
    left, right = min(cost.min(), budget), max(cost.max(), budget)
    left = min(left, right - 0.5)
    margin = 0.06 * (right - left)
    axes.set_xlim(left - margin, right + margin)
    original = record.results["cost_values"]["original"]
    axes.set_xlabel(f"cost, % of the original's {millions(original)} {record.results['cost_unit']}")
    axes.set_ylabel("top-1 on the reward images, %" if protocol.top1 else f"reward = {protocol.axis}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
    axes.ticklabel_format(useOffset=False)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def pareto_front(cost: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Indices of the points that no other beats in both cost and reward, from the cheapest on.

    Args:
        cost: [N], smaller is better.
        reward: [N], larger is better.
    """
    order = np.lexsort((-reward, cost))
    before = np.concatenate(([-np.inf], np.maximum.accumulate(reward[order])[:-1]))
    return order[reward[order] > before]


def lowest_shown(values: np.ndarray, step: float = 1.0) -> float:
    """The lowest value [N] that a figure shows: the minimum, unless a few outliers would flatten the rest."""
    lowest, highest = values.min(), values.max()
    floor = np.floor(np.quantile(values, 0.1) / step) * step
    return float(floor if highest - floor < 0.5 * (highest - lowest) else lowest)


def _scatter(axes: Axes, x: np.ndarray, y: np.ndarray, protocol: Protocol) -> None:
    """One dot per episode; those below the limit of the y axis are counted and marked at its lower edge."""
    floor = lowest_shown(y, protocol.step)
    inside = y >= floor
    axes.scatter(
        x[inside],
        y[inside],
        s=np.clip(5000 / len(y), 6, 22),
        color=BLUE,
        alpha=0.6,
        linewidths=0,
        label="episode",
        rasterized=len(y) > MANY_POINTS,
    )
    if not inside.all():
        axes.plot(
            x[~inside],
            np.full((~inside).sum(), 0.02),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker="v",
            markersize=5,
            color="#6B7280",
            label=f"{(~inside).sum()} of {_plural(len(y), 'episode')} below "
            f"{fixed(floor, 0 if protocol.top1 else 2)} {protocol.unit}",
        )
    margin = max(0.06 * (y.max() - floor), 0.5 * protocol.step)
    axes.set_ylim(floor - margin, y.max() + margin)


def _include(axes: Axes, level: float) -> None:
    """Widens the y axis until a level is within."""
    bottom, top = axes.get_ylim()
    margin = 0.06 * (top - bottom)
    axes.set_ylim(min(bottom, level - margin), max(top, level + margin))


def _levels(axes: Axes, levels: dict[str, float], protocol: Protocol) -> None:
    """Rewards of baselines at the same budget as lines; those far below the axis are marked at its lower edge."""
    bottom, top = axes.get_ylim()
    below = 0
    for (name, level), colour in zip(levels.items(), cycle((INK, PURPLE, SKY, ORANGE)), strict=False):
        label = f"{name.replace('_', ' ')}: {protocol.text(level)}"
        if level >= bottom - 0.5 * (top - bottom):
            axes.axhline(level, color=colour, linestyle=":", linewidth=1.6, label=label)
            _include(axes, level)
            continue
        below += 1
        axes.plot(
            [0.02 * below],
            [0.02],
            transform=axes.transAxes,
            linestyle="none",
            marker="v",
            markersize=7,
            color=colour,
            label=f"{label}, below the axis",
        )


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
