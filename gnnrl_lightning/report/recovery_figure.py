"""The figure of a fine-tuning: accuracy by the training images seen."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from gnnrl_lightning.core.numbers import fixed
from gnnrl_lightning.evaluation.protocol import Protocol
from gnnrl_lightning.report.record import Record
from gnnrl_lightning.report.style import BLUE, GREEN, new_figure


def recovery_figure(record: Record) -> Figure:
    """Top-1 on the reward split during the fine-tuning, with the level of the original network if it is known."""
    images = [point["images"] for point in record.recovery]
    top1 = [point["top1"] for point in record.recovery]
    best = max(top1)
    kept = "" if best == top1[-1] else f"; its best, {fixed(best, 2)} %, is kept"
    figure, axes = new_figure(
        f"Fine-tuning takes the network from {fixed(top1[0], 2)} % to {fixed(top1[-1], 2)} % on the reward images{kept}"
    )
    axes.plot(images, top1, color=BLUE, linewidth=2, marker="o", markersize=4, label="pruned network")
    original = record.results.get("reward_top1_original")
    if original is not None:
        label = f"original network: {fixed(original, 2)} %"
        axes.axhline(original, color=GREEN, linestyle="--", linewidth=1.5, label=label)
    axes.set_xlabel("training images seen")
    axes.set_ylabel(f"{Protocol.of(record.results).accuracy} on the reward images, %")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.ticklabel_format(axis="y", useOffset=False)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
