"""Where the layers of a network stand in its figure: columns by depth, lanes for branches, rows to fit the page."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gnnrl_lightning.topology.outline import JOINS, Layer

_JOIN_UNITS = 0.7
"""Width of a column that holds joins alone; that of any other is 1."""


@dataclass(frozen=True)
class Place:
    """Where one layer stands: a row, a lane of it (0 is the lowest), and x in units from the row's left end."""

    row: int
    lane: int
    x: float
    units: float
    """Width of its column."""


@dataclass(frozen=True)
class Piece:
    """The part in one row of a link from a layer to one that reads it.

    Attributes:
        row: Of the figure.
        lane: That it runs along.
        left: Where it begins to run, in units.
        right: Where it ends.
        level: 0 where it runs from bar to bar, otherwise how high an arc it is, from 1 on.
        source: The layer where it begins; None where it comes from the row before.
        target: The layer where it ends; None where it goes on in the next row.
    """

    row: int
    lane: int
    left: float
    right: float
    level: int
    source: int | None
    target: int | None


@dataclass(frozen=True)
class Layout:
    """The places of all layers, the links between them, and the width of each row in units."""

    places: list[Place]
    pieces: list[Piece]
    rows: list[float]


@dataclass(frozen=True)
class _Link:
    source: int
    target: int
    lane: int
    arc: bool


def arrange(layers: Sequence[Layer], most: float) -> Layout:
    """Places layers so that each stands right of all that it reads.

    Args:
        layers: In the order of execution.
        most: Units that fit into a row.
    """
    reads = _shortened(layers)
    columns: list[int] = []
    for sources in reads:
        columns.append(1 + max((columns[source] for source in sources), default=-1))
    lanes, links = _lanes(columns, reads)
    units = [_JOIN_UNITS] * (1 + max(columns))
    for layer, column in zip(layers, columns, strict=True):
        if layer.kind not in JOINS:
            units[column] = 1.0
    crossed = [0] * len(units)  # links that cross the left edge of each column
    for link in links:
        for column in range(columns[link.source] + 1, columns[link.target] + 1):
            crossed[column] += 1
    starts = _starts(units, crossed, most)
    row_of = [sum(column >= start for start in starts) - 1 for column in range(len(units))]
    places = [
        Place(row_of[column], lane, sum(units[starts[row_of[column]] : column]) + units[column] / 2, units[column])
        for column, lane in zip(columns, lanes, strict=True)
    ]
    rows = [sum(units[a:b]) for a, b in zip(starts, [*starts[1:], len(units)], strict=True)]
    return Layout(places, _pieces(links, places, rows), rows)


def _shortened(layers: Sequence[Layer]) -> list[tuple[int, ...]]:
    """What each layer reads, where a concat of what an earlier one joined and more reads that earlier one.

    Dense blocks join all that they have at every step; drawn so, each would need an arc from every layer before it.
    """
    seen: dict[tuple[int, ...], int] = {}
    reads = []
    for index, layer in enumerate(layers):
        sources = layer.reads
        if layer.kind == "cat":
            end = next((end for end in range(len(sources), 1, -1) if sources[:end] in seen), 0)
            if end:
                sources = (seen[sources[:end]], *sources[end:])
            seen.setdefault(layer.reads, index)
        reads.append(sources)
    return reads


def _lanes(columns: list[int], reads: list[tuple[int, ...]]) -> tuple[list[int], list[_Link]]:
    """The lane of each layer and the way of each link: the longest path lies in lane 0, branches above it."""
    readers: dict[int, list[int]] = defaultdict(list)
    for index, sources in enumerate(reads):
        for source in sources:
            readers[source].append(index)
    lanes: dict[int, int] = {}
    owner: dict[tuple[int, int], int] = {}  # (lane, column) → the first layer of the path that has it
    path_of: dict[int, int] = {}
    while len(lanes) < len(columns):
        path = _longest_path(reads, lanes)
        # Up to where it joins others the lane is kept free for its link.
        end = min((columns[reader] for reader in readers[path[-1]]), default=columns[path[-1]] + 1)
        span = range(columns[path[0]], end)
        lane = next(lane for lane in range(len(columns)) if not any((lane, column) in owner for column in span))
        for index in path:
            lanes[index], path_of[index] = lane, path[0]
        for column in span:
            owner[lane, column] = path[0]
    stands = {(lanes[index], column) for index, column in enumerate(columns)}
    links = []
    for target, sources in enumerate(reads):
        for source in sources:
            end = source if lanes[source] > lanes[target] else target
            between = [(lanes[end], column) for column in range(columns[source] + 1, columns[target])]
            free = all(cell not in stands and owner.get(cell, path_of[end]) == path_of[end] for cell in between)
            if free:
                owner |= dict.fromkeys(between, path_of[end])
            links.append(_Link(source, target, lanes[end], arc=not free))
    return [lanes[index] for index in range(len(columns))], links


def _longest_path(reads: list[tuple[int, ...]], done: dict[int, int]) -> list[int]:
    """The most layers in a row among those that are not done."""
    best: dict[int, tuple[int, int | None]] = {}  # length of the longest path to here, and the layer before
    for index, sources in enumerate(reads):
        if index not in done:
            before = max((s for s in sources if s not in done), key=lambda s: best[s][0], default=None)
            best[index] = (1 if before is None else best[before][0] + 1, before)
    last: int | None = max(best, key=lambda index: best[index][0])
    path = []
    while last is not None:
        path.append(last)
        last = best[last][1]
    return path[::-1]


def _starts(units: list[float], crossed: list[int], most: float) -> list[int]:
    """The first column of each row: rows of about the same width, broken where few links are cut."""
    starts = [0]
    while (rest := sum(units[starts[-1] :])) > most:
        count = -(-rest // most)
        width, candidates = 0.0, []
        for column in range(starts[-1], len(units)):
            if width + units[column] > most:
                candidates.append((crossed[column], abs(width - rest / count), column))
                break
            # Not so early that what is left takes a row more.
            if width > 0.75 * rest / count and rest - width <= (count - 1) * most:
                candidates.append((crossed[column], abs(width - rest / count), column))
            width += units[column]
        starts.append(min(candidates)[-1])
    return starts


def _pieces(links: list[_Link], places: list[Place], rows: list[float]) -> list[Piece]:
    """Cuts the links into rows, and lets each arc run above all shorter ones on its way."""
    pieces = []
    for link in links:
        source, target = places[link.source], places[link.target]
        for row in range(source.row, target.row + 1):
            left, right = 0.0, rows[row]
            if row == source.row:
                left = source.x if source.lane == link.lane else source.x + source.units / 2
            if row == target.row:
                right = target.x if target.lane == link.lane else target.x - target.units / 2
            begin = link.source if row == source.row else None
            end = link.target if row == target.row else None
            pieces.append(Piece(row, link.lane, left, right, int(link.arc), begin, end))
    arcs: dict[tuple[int, int], list[Piece]] = defaultdict(list)
    for piece in sorted((piece for piece in pieces if piece.level), key=lambda piece: piece.right - piece.left):
        below = arcs[piece.row, piece.lane]
        level = 1 + max((p.level for p in below if p.left < piece.right and piece.left < p.right), default=0)
        below.append(replace(piece, level=level))
    return [piece for piece in pieces if not piece.level] + [arc for found in arcs.values() for arc in found]
