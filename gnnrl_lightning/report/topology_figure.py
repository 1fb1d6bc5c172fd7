"""The figure of a network's topology: every layer a bar, filled as far as its channels stay."""

import math
from collections import defaultdict
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from gnnrl_lightning.report.style import BLUE, GREEN, GREY, ORANGE, PALE, SKY
from gnnrl_lightning.report.topology_layout import Layout, Piece, arrange
from gnnrl_lightning.topology.outline import JOINS, Layer

# All lengths are inches, which are the units of the axes as well.
LEAST_WIDTH, WIDTH, MARGIN, TITLE, LEGEND = 7.0, 10.0, 0.2, 0.6, 0.75
MOST_UNITS, WIDEST_UNIT = 44, 0.42
BAR, LEAST_BAR = 1.0, 0.06
"""Heights of the widest layer's bar, and the least that is still seen."""
LINK = 0.03
"""How far above the feet of the bars the links run."""
ARC, GAP, RADIUS = 0.1, 0.1, 0.05
LETTERS, NAME_LETTERS = 6.5, 22
"""Size of the names in points, and how long they may be."""

_KINDS = {
    "convolution": ("convolution", BLUE),
    "linear": ("linear layer", BLUE),
    "product": ("matrix product", BLUE),
    "depth-wise": ("depth-wise convolution", SKY),
    **dict.fromkeys(sorted(JOINS), ("join of branches", GREEN)),
}
"""What the legend calls each kind of layer, and the colour of what is kept of it."""


def topology_figure(layers: Sequence[Layer]) -> Figure:
    """The layers of a network in order of depth, branches in lanes above each other, skips as arcs.

    Args:
        layers: Its outline; not empty.
    """
    layout = arrange(layers, MOST_UNITS)
    unit = min(WIDEST_UNIT, (WIDTH - 2 * MARGIN) / max(layout.rows))
    highest = math.sqrt(max(layer.width for layer in layers))
    heights = [max(BAR * math.sqrt(layer.width) / highest, LEAST_BAR) for layer in layers]
    names = [_name(layer) for layer in layers]
    feet, tops, content = _vertical(layout, heights, names)
    width = max(LEAST_WIDTH, 2 * MARGIN + unit * max(layout.rows))
    figure = Figure(figsize=(width, TITLE + content + LEGEND))
    axes = figure.add_axes((0, LEGEND / figure.get_figheight(), 1, content / figure.get_figheight()))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(0, content)
    left = (width - unit * max(layout.rows)) / 2
    bars = [
        (left + unit * place.x, feet[place.row, place.lane], height)
        for place, height in zip(layout.places, heights, strict=True)
    ]
    for layer, name, (x, foot, height) in zip(layers, names, bars, strict=True):
        thickness = unit * (0.3 if layer.kind in JOINS else 0.62)
        axes.bar(x, height, thickness, foot, color=PALE, edgecolor=GREY, linewidth=0.4)
        axes.bar(x, height * layer.kept / layer.width, thickness, foot, color=_KINDS[layer.kind][1])
        axes.text(x, foot - 0.03, name, rotation=90, va="top", ha="center", fontsize=LETTERS)
    for piece in layout.pieces:
        height = tops[piece.row, piece.lane] + GAP + ARC * (piece.level - 1)
        run = height if piece.level else feet[piece.row, piece.lane] + LINK
        _draw(axes, piece, layout, bars, left, unit, run)
    least = min((layer for layer in layers if layer.kind not in JOINS), key=lambda layer: layer.kept / layer.width)
    figure.suptitle(
        f"{least.name} keeps the smallest part of its channels: {least.kept} of {least.width}",
        wrap=True,
        y=1 - 0.12 / figure.get_figheight(),
    )
    figure.legend(handles=_handles(layers, layout), loc="lower center", ncols=3 if width > 9 else 2, fontsize=8)
    return figure


def _handles(layers: Sequence[Layer], layout: Layout) -> list[Artist]:
    """Entries of the legend: one a colour that there is."""
    kinds: dict[str, list[str]] = {}
    for kind, (words, colour) in _KINDS.items():
        if words not in kinds.get(colour, []) and any(layer.kind == kind for layer in layers):
            kinds.setdefault(colour, []).append(words)
    handles: list[Artist] = [Patch(color=colour, label=f"kept share: {', '.join(of)}") for colour, of in kinds.items()]
    handles.append(Patch(facecolor=PALE, edgecolor=GREY, label="removed (bars are √channels high)"))
    if any(piece.level for piece in layout.pieces):
        handles.append(Line2D([], [], color=ORANGE, label="skip connection"))
    return handles


def _name(layer: Layer) -> str:
    """What stands below a bar: the end of the module's path, or the kind of join, and the channels."""
    parts = layer.name.split(".")
    while len(".".join(parts)) > NAME_LETTERS and len(parts) > 1:
        parts.pop(0)
    path = ".".join(parts)
    name = layer.kind if layer.kind in JOINS else path if path == layer.name else f"…{path}"
    return f"{name} {layer.kept}/{layer.width}" if layer.kept < layer.width else f"{name} {layer.width}"


def _vertical(
    layout: Layout, heights: list[float], names: list[str]
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float], float]:
    """The y of the feet of the bars and of the tops of the highest, by row and lane, and the height of all."""
    below: dict[tuple[int, int], float] = defaultdict(float)
    bars: dict[tuple[int, int], float] = defaultdict(float)
    levels: dict[tuple[int, int], int] = defaultdict(int)
    for place, height, name in zip(layout.places, heights, names, strict=True):
        key = place.row, place.lane
        below[key] = max(below[key], TextPath((0, 0), name, size=LETTERS).get_extents().width / 72 + 0.06)
        bars[key] = max(bars[key], height)
    for piece in layout.pieces:
        levels[piece.row, piece.lane] = max(levels[piece.row, piece.lane], piece.level)
    feet, tops, y = {}, {}, 0.0
    for row in reversed(range(len(layout.rows))):
        for lane in range(1 + max(lane for of, lane in [*bars, *levels] if of == row)):
            key = row, lane
            feet[key] = y + below[key]
            tops[key] = feet[key] + bars[key]
            y = tops[key] + (GAP + ARC * levels[key] if levels[key] else 0) + 0.1
        y += 0.1
    return feet, tops, y - 0.15


def _draw(
    axes: Axes,
    piece: Piece,
    layout: Layout,
    bars: list[tuple[float, float, float]],
    left: float,
    unit: float,
    run: float,
) -> None:
    """One link, which runs at the height `run` in this row."""

    def end(index: int, x: float, side: float) -> list[tuple[float, float]]:
        """From the bar to where the link begins to run."""
        centre, foot, height = bars[index]
        if layout.places[index].lane != piece.lane:
            return [(centre, foot + LINK), (x, foot + LINK), (x, run)]
        if piece.level:
            # A little beside the middle, so that arcs that end and begin at one bar stay apart.
            return [(centre + side, foot + height), (centre + side, run)]
        return [(centre, run)]

    start, stop = left + unit * piece.left, left + unit * piece.right
    first = [(start, run)] if piece.source is None else end(piece.source, start, 0.08 * unit)
    last = [(stop, run)] if piece.target is None else end(piece.target, stop, -0.08 * unit)
    colour = ORANGE if piece.level else GREY
    path = _rounded([*first, *last[::-1]])
    axes.add_patch(PathPatch(path, fill=False, edgecolor=colour, linewidth=1.1, zorder=0.5, capstyle="butt"))


def _rounded(points: list[tuple[float, float]]) -> Path:
    """A line through points with right angles, its corners rounded."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        vertices += [_near(corner, before), corner, _near(corner, after)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*vertices, points[-1]], [*codes, Path.LINETO])


def _near(corner: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    """The point where a line begins or ends to bend around a corner."""
    length = math.dist(corner, towards)
    share = min(RADIUS / length, 0.5) if length else 0.0
    return corner[0] + share * (towards[0] - corner[0]), corner[1] + share * (towards[1] - corner[1])
