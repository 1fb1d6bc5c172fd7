"""Faults that the check must see, and what it must leave alone."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning import compare, verify
from gnnrl_lightning.pruning.apply import apply_plan, uniform_plan
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.rewrite import is_rewritten, rewrite
from gnnrl_lightning.pruning.saved import save_pruned
from gnnrl_lightning.pruning.verify import provable, verified
from gnnrl_lightning.topology import trace


class Swapped(nn.Module):
    """Halves by a number in the code, and puts them together the other way round: surgery gets that wrong."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.split(4, 1) if x.shape[1] == 8 else (x[:, : x.shape[1] - 1], x[:, x.shape[1] - 1 :])
        return torch.cat([right, left], 1)


class Faint(nn.Module):
    """A residual branch whose layer scale is that of a fresh ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 1), Swapped(), nn.Conv2d(8, 8, 1))
        self.scale, self.head = nn.Parameter(torch.full((8, 1, 1), 1e-6)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.scale * self.branch(x)).mean((2, 3)))


class Fading(nn.Module):
    """Fourteen layers without normalisation, each of which makes its signal smaller."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(13) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), Swapped(), *layers)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Mixed(nn.Module):
    """An output of two parts of which one is ten thousand times larger."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.kinds = nn.Sequential(nn.Conv2d(8, 8, 1), Swapped(), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat([1e4 * self.box(x), self.kinds(x)], 1)


@pytest.mark.parametrize("kind", [Faint, Fading, Mixed])
def test_no_fault_is_too_faint_to_be_seen(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    topology = trace(model, torch.zeros(1, 3, 16, 16))
    small = apply_plan(model, uniform_plan(topology, model, keep=0.75))
    assert is_rewritten(small)
    assert provable(model, topology)[1] is rewrite


class Counting(nn.Module):
    """Counts its calls, and what it sees, in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.copy_(0.9 * self.mean + 0.1 * x.mean((0, 2, 3)))
        return self.second(self.first(x)) + self.mean.sum() + self.calls


def test_what_a_forward_changes_in_its_buffers_is_left_alone() -> None:
    model = Counting().eval()
    before = copy.deepcopy(model.state_dict())
    topology = trace(model, torch.zeros(1, 3, 16, 16))
    provable(model, topology)
    apply_plan(model, uniform_plan(topology, model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Noisy(nn.Module):
    """Has a number of channels in what only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.training:
            x = x + torch.randn(1, 8, 1, 1)
        return self.second(x)


def test_a_size_that_only_training_has_is_found() -> None:
    model = Noisy()
    small = apply_plan(model, uniform_plan(trace(model, torch.zeros(1, 3, 16, 16)), model))
    assert is_rewritten(small)
    assert small.train()(torch.zeros(2, 3, 16, 16)).shape == (2, 4, 12, 12)


class Grouped(nn.Module):
    """Two producers, one of them the first layer, behind each other in the blocks of a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 18, 1)
        self.grouped, self.head = nn.Conv2d(24, 8, 1, groups=2), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.grouped(torch.cat([x, self.other(x)], 1)))


@pytest.mark.parametrize("locked", ["keep_ends", "without"])
def test_a_plan_is_located_with_the_locks_that_it_was_made_with(locked: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Grouped().eval()
    topology = trace(model, torch.zeros(1, 3, 8, 8), keep_ends=locked == "keep_ends")
    if locked == "without":
        topology = topology.without([0], "why not")
    plan = uniform_plan(topology, model)
    assert plan.keep_ends == (locked == "keep_ends") and bool(plan.whole) == (locked == "without")
    small = verified(model, topology, [group.kept for group in plan.groups])
    save_pruned(tmp_path, small, plan)
    again = PruningPlan.load(tmp_path / "plan.json")
    assert replace(again, saved={}) == plan
    found = apply_plan(model, again)
    for name, value in small.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(16, 12)), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x.mean((2, 3)) @ torch.ones(3, 12), self.weight).relu()
        return self.head(F.linear(hidden, self.weight.t()))


def test_the_unpruned_network_has_the_parameters_that_it_has() -> None:
    model = Tied()
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    assert topology.parameters() == sum(p.numel() for p in model.parameters())
    plan = uniform_plan(topology, model)
    small = apply_plan(model, plan)
    assert topology.parameters(torch.tensor(plan.widths)) == sum(p.numel() for p in small.parameters())


class Single(nn.Module):
    """Asks for single precision."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.float())


def test_rounding_alone_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where single precision is not enough to say, double is; where a network does not run in it, single is all."""
    torch.manual_seed(0)
    model = resnet_cifar(20, 10).eval()
    monkeypatch.setattr(verify, "RELATIVE_TOLERANCE", 1e-10)
    plan = uniform_plan(trace(model, torch.zeros(1, 3, 32, 32)), model)
    apply_plan(model, plan)
    single = Single(model).eval()
    plan = uniform_plan(trace(single, torch.zeros(1, 3, 32, 32)), single)
    with pytest.raises(ValueError, match=r"by surgery \(relative error .*e-0[67]\)"):
        apply_plan(single, plan)


def test_values_that_are_no_numbers_are_a_fault() -> None:
    assert compare.relative_error(torch.tensor([[1.0, torch.nan]]), torch.ones(1, 2)) == math.inf
