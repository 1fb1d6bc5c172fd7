"""The budget is spent as exhaustive search would."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from gnnrl_lightning.reconstruction.allocation import allocate, closed_form_plans
from gnnrl_lightning.topology import Topology, trace


@pytest.fixture(scope="module")
def topology() -> Topology:
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3), nn.Conv2d(7, 5, 1), nn.Conv2d(5, 2, 1))
    return trace(layers.eval(), torch.zeros(1, 3, 12, 12))


def curves(topology: Topology, seed: int, power: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = 1 + 9 * torch.rand(len(topology.groups), generator=generator, dtype=torch.float64)
    return [
        size * torch.linspace(1, 0, group.width + 1, dtype=torch.float64) ** power
        for size, group in zip(sizes, topology.groups, strict=True)
    ]


def in_steps(topology: Topology) -> object:
    """As time: it only falls at every second channel."""
    return lambda widths: (100 * ((widths + 1) // 2).double().prod(-1)).long()


def exhaustive(topology: Topology, errors: list[Tensor], cost: object, allowed: int) -> float:
    every = torch.tensor(list(itertools.product(*(group.widths() for group in topology.groups))))
    every = every[cost(every) <= allowed]  # type: ignore[operator]
    return float(sum(curve[every[:, g]] for g, curve in enumerate(errors)).min())  # type: ignore[union-attr]


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("kind", ["macs", "parameters", "steps"])
def test_allocation_is_nearly_that_of_exhaustive_search(topology: Topology, kind: str, budget: float) -> None:
    cost = {"macs": topology.macs, "parameters": topology.parameters, "steps": in_steps(topology)}[kind]
    allowed = int(budget * int(cost(topology.full_widths())))  # type: ignore[operator]
    gaps = []
    for seed, power in itertools.product(range(4), (1.0, 2.0, 3.0)):
        errors = curves(topology, seed, power)
        widths = allocate(topology, errors, cost, allowed)  # type: ignore[arg-type]
        assert int(cost(widths)) <= allowed  # type: ignore[operator]
        found = float(sum(curve[int(w)] for curve, w in zip(errors, widths, strict=True)))
        gaps.append(found / exhaustive(topology, errors, cost, allowed) - 1)
    assert max(gaps) <= 0.2 and sum(gaps) / len(gaps) <= 0.02


def test_plans_are_within_the_budget_and_few(topology: Topology) -> None:
    allowed = topology.macs() // 2
    uniform = torch.tensor([4, 4, 3])
    plans = closed_form_plans(topology, curves(topology, 0, 2.0), topology.macs, allowed, uniform)
    assert len(plans) <= 8 and torch.equal(plans["uniform"], uniform)
    assert all(int(topology.macs(plan)) <= allowed for name, plan in plans.items() if name != "uniform")


def test_multiples_are_kept() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Conv2d(24, 2, 1))
    topology = trace(layers.eval(), torch.zeros(1, 3, 8, 8), divisor=8)
    widths = allocate(topology, curves(topology, 0, 2.0), topology.macs, topology.macs() // 2)
    assert all(int(width) in group.widths() for width, group in zip(widths, topology.groups, strict=True))
