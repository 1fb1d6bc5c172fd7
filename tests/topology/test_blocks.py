"""Grouped convolutions: what goes together takes equally many channels from every block, and nothing is lost."""

import numpy as np
import pytest
import torch
from torch import nn

from gnnrl_lightning.models.shufflenet_v1 import channel_shuffle
from gnnrl_lightning.topology import trace
from gnnrl_lightning.topology.blocks import balanced_sets

FIXED = 0


def check(constraints: list[np.ndarray], sets: list[list[int]], rest: list[int]) -> None:
    """Sets are disjoint, have the same count in every block of each constraint, and with the rest are all there is."""
    chosen = [number for together in sets for number in together]
    assert len(chosen) == len(set(chosen)) and not set(chosen) & {FIXED, *rest}
    for blocks in constraints:
        for together in sets:
            counts = np.isin(blocks, together).sum(1)
            assert (counts == counts[0]).all()


@pytest.mark.parametrize(("blocks", "size"), [(2, 4), (3, 4), (4, 4), (8, 3), (3, 80), (4, 6), (1, 5)])
def test_a_shuffle_between_grouped_convolutions_loses_nothing(blocks: int, size: int) -> None:
    before = np.arange(1, blocks * size + 1).reshape(blocks, size)
    after = before.T.reshape(blocks, size)
    sets, rest = balanced_sets([before, after], FIXED)
    check([before, after], sets, rest)
    assert rest == []
    # With a single block every channel goes alone, and there is nothing to say.
    assert len(sets) == (size if blocks > 1 else 0) and all(len(together) == blocks for together in sets)


@pytest.mark.parametrize("seed", range(5))
def test_any_permutation_between_two_grouped_convolutions_loses_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    blocks, size = generator.integers(2, 7, 2)
    before = np.arange(1, blocks * size + 1).reshape(blocks, size)
    after = generator.permutation(before.flatten()).reshape(blocks, size)
    sets, rest = balanced_sets([before, after], FIXED)
    check([before, after], sets, rest)
    assert (len(sets), rest) == (size, [])


def test_one_grouped_convolution_takes_channels_in_order() -> None:
    sets, rest = balanced_sets([np.array([[1, 2, 3], [4, 5, 6]])], FIXED)
    assert (sets, rest) == ([[1, 4], [2, 5], [3, 6]], [])


def test_what_must_stay_takes_its_partners_with_it() -> None:
    blocks = np.array([[FIXED, 1, 2, 3], [4, 5, 6, 7]])
    sets, rest = balanced_sets([blocks], FIXED)
    check([blocks], sets, rest)
    assert len(sets) == 3 and len(rest) == 1 and rest[0] >= 4


def test_classes_with_several_positions_in_a_block_keep_the_balance() -> None:
    blocks = np.array([[1, 1, 2, 3], [4, 4, 5, 6]])
    sets, rest = balanced_sets([blocks], FIXED)
    check([blocks], sets, rest)
    assert sorted(map(sorted, sets)) == [[1, 4], [2, 5], [3, 6]] and rest == []
    uneven = np.array([[1, 1, 2, 3], [4, 5, 6, 7]])
    sets, rest = balanced_sets([uneven], FIXED)
    check([uneven], sets, rest)
    assert len(sets) == 2 and 1 in rest and len(rest) == 3


def test_a_class_that_crosses_the_blocks_unevenly_stays() -> None:
    blocks = np.array([[1, 2, 3], [1, 1, 4]])
    sets, rest = balanced_sets([blocks], FIXED)
    check([blocks], sets, rest)
    assert 1 in rest


def test_balanced_blocks_ask_for_nothing() -> None:
    blocks = np.array([[1, 2, 3], [3, 1, 2]])
    assert balanced_sets([blocks, blocks], FIXED) == ([], [])


def test_convolutions_apart_are_treated_apart() -> None:
    first, second = np.array([[1, 2], [3, 4]]), np.array([[5, 6, 7], [8, 9, 10]])
    sets, rest = balanced_sets([first, second, first[::-1]], FIXED)
    check([first, second], sets, rest)
    assert (len(sets), rest) == (5, [])


def test_three_convolutions_that_cross_stay_whole() -> None:
    before = np.arange(1, 13).reshape(3, 4)
    generator = np.random.default_rng(0)
    others = [generator.permutation(before.flatten()).reshape(3, 4) for _ in range(2)]
    sets, rest = balanced_sets([before, *others], FIXED)
    check([before, *others], sets, rest)
    assert len(sets) * 3 + len(rest) == 12


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_shuffled_grouped_convolutions_of_a_network_keep_all_their_freedom(groups: int) -> None:
    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 12, 1)
            self.b = nn.Conv2d(12, 24, 1, groups=groups)
            self.c = nn.Conv2d(24, 12, 1, groups=groups)
            self.head = nn.Conv2d(12, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.c(channel_shuffle(self.b(self.a(x)), groups)))

    topology = trace(Unit(), torch.zeros(1, 3, 4, 4))
    widths = {group.name: group.width for group in topology.groups}
    assert widths["a"] == 12 // groups and widths["b"] == 24 // groups
    assert "network output" in {reason for reason, _ in topology.locked} and len(topology.locked) == 1
    columns = topology.slots["c.weight", 1]
    assert columns.shape == (groups, 24 // groups)
    assert all(block.sort().values.equal(columns[0].sort().values) for block in columns)
