"""Grouped convolutions: how channels must go together so that every block keeps equally many.

A grouped convolution reads its input in blocks and writes its output in blocks; each must keep the same number. The
smallest sets that can go are those with one channel of every block. Behind a shuffle the channels lie in blocks of two
grouped convolutions at once: then a set is a perfect matching between the blocks of the one and those of the other. A
regular bipartite graph splits into such matchings (König), so that no channel is lost to the constraint.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np


def balanced_sets(constraints: Sequence[np.ndarray], fixed: int) -> tuple[list[list[int]], list[int]]:
    """Puts channel classes into sets that take equally many positions from every block of every constraint.

    Args:
        constraints: Class of each position of each block, [blocks, positions].
        fixed: The class that always stays.

    Returns:
        The sets, and the classes that fit into none: they must stay.
    """
    constraints = _distinct([blocks for blocks in constraints if not _is_balanced(blocks, fixed)])
    sets: list[list[int]] = []
    rest: list[int] = []
    for part in _independent(constraints, fixed):
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)  # class → (block, count) in each constraint
        for blocks in part:
            for number, where in _profile(blocks, fixed).items():
                places[number] += where if len(where) == 1 else [(-1, 0)]
        simple = {number: where for number, where in places.items() if len(where) == len(part) and (-1, 0) not in where}
        kinds: dict[tuple[int, ...], dict[int, list[tuple[int, ...]]]] = defaultdict(dict)
        rest += places.keys() - simple.keys()
        for number in sorted(simple):
            where = simple[number]
            kinds[tuple(count for _, count in where)][number] = [tuple(block for block, _ in where)]
        for members in kinds.values():
            found = _match({number: where[0] for number, where in members.items()}, [len(blocks) for blocks in part])
            sets += found
            rest += members.keys() - {number for one in found for number in one}
    return sets, sorted(rest)


def _match(blocks_of: dict[int, tuple[int, ...]], sizes: Sequence[int]) -> list[list[int]]:
    """Sets with one class of every block: in the order of the classes for one constraint, by matchings for two."""
    if len(sizes) == 1:
        columns: list[list[int]] = [[] for _ in range(sizes[0])]
        for number, (block,) in blocks_of.items():
            columns[block].append(number)
        return [list(together) for together in zip(*columns, strict=False)]
    if len(sizes) > 2 or sizes[0] != sizes[1]:
        return []
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    cells: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, cell in reversed(blocks_of.items()):
        cells[cell].append(number)
    sets = []
    while cells:
        rows, columns_ = zip(*cells, strict=True)
        table = csr_array((np.ones(len(rows), dtype=bool), (rows, columns_)), shape=(sizes[0], sizes[1]))
        match = maximum_bipartite_matching(table, perm_type="column")
        if (match < 0).any():
            break
        together = [cells[row, column] for row, column in enumerate(match.tolist())]
        # As many sets as the scarcest cell of this matching allows, at once.
        for _ in range(min(map(len, together))):
            sets.append([cell.pop() for cell in together])
        cells = defaultdict(list, {cell: numbers for cell, numbers in cells.items() if numbers})
    return sets


def _profile(blocks: np.ndarray, fixed: int) -> dict[int, list[tuple[int, int]]]:
    """For each class the blocks in which it has positions, and how many."""
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for block, row in enumerate(blocks):
        for number, count in zip(*np.unique(row, return_counts=True), strict=True):
            if number != fixed:
                places[int(number)].append((block, int(count)))
    return places


def _is_balanced(blocks: np.ndarray, fixed: int) -> bool:
    """Whether every class takes equally many positions from every block already."""
    return all(
        len(where) == len(blocks) and len({count for _, count in where}) == 1
        for where in _profile(blocks, fixed).values()
    )


def _distinct(constraints: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Drops constraints that say the same as an earlier one: the same classes in each block."""
    seen = {tuple(tuple(sorted(row)) for row in blocks.tolist()): blocks for blocks in constraints}
    return list(seen.values())


def _independent(constraints: Sequence[np.ndarray], fixed: int) -> list[list[np.ndarray]]:
    """Constraints in parts that share no class."""
    first: dict[int, int] = {}
    pairs = []
    for index, blocks in enumerate(constraints):
        for number in np.unique(blocks[blocks != fixed]).tolist():
            pairs.append((first.setdefault(number, index), index))
    if not pairs:
        return []
    part_of = components(np.array(pairs).T, len(constraints))
    return [[constraints[int(i)] for i in np.flatnonzero(part_of == part)] for part in range(part_of.max() + 1)]


def components(pairs: np.ndarray, count: int) -> np.ndarray:
    """The class of each of `count` nodes, where pairs [2, N] belong together."""
    # Imported where it is used, as above: it takes a tenth of a second.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(pairs.shape[1], dtype=bool)
    return connected_components(coo_array((ones, (pairs[0], pairs[1])), shape=(count, count)), directed=False)[1]


def merged(classes: np.ndarray, sets: Iterable[Sequence[int]]) -> np.ndarray:
    """Classes after those of each set have become one."""
    pairs = np.array([(one[0], other) for one in sets for other in one[1:]], dtype=np.int64).reshape(-1, 2)
    return components(pairs.T, int(classes.max()) + 1)[classes]
