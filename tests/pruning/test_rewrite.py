"""A rewritten network is a network like any other: it trains, saves, copies, exports and can be pruned again."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import CASES, EXAMPLE, Net, ShuffleV2, Standardised, images, shuffle, traced
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gnnrl_lightning.pruning.apply import apply_plan, uniform_plan
from gnnrl_lightning.pruning.compare import relative_error
from gnnrl_lightning.pruning.rewrite import rewrite
from gnnrl_lightning.pruning.saved import load_pruned, save_pruned
from gnnrl_lightning.pruning.verify import verified
from gnnrl_lightning.topology import trace

REWRITTEN = [name for name, case in CASES.items() if case.rewritten]
COMPUTED = "standardised"
"""Of this network the computed weights take the place of those that they are computed from."""


def halved(model: nn.Module) -> fx.GraphModule:
    small = apply_plan(model, uniform_plan(trace(model, EXAMPLE), model))
    assert isinstance(small, fx.GraphModule)
    return small


@pytest.mark.parametrize("name", CASES)
def test_without_pruning_it_is_bit_identical(name: str) -> None:
    model, topology = traced(name)
    same = rewrite(model, topology, [range(group.width) for group in topology.groups])
    with torch.no_grad():
        torch.testing.assert_close(same(images(4)), model(images(4)), rtol=0, atol=0)
    assert topology.parameters() == sum(p.numel() for p in same.parameters())
    if name != COMPUTED:
        assert dict(same.named_parameters()).keys() == dict(model.named_parameters()).keys()
        assert dict(same.named_buffers()).keys() >= dict(model.named_buffers()).keys()
    original = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
    assert not original & {p.data_ptr() for p in (*same.parameters(), *same.buffers())}


@pytest.mark.parametrize("name", REWRITTEN)
def test_every_parameter_is_trained(name: str, pruning: Any) -> None:
    model, topology = traced(name)
    small = rewrite(model, topology, pruning.kept(topology)).train()
    small(images(4)).square().sum().backward()
    assert [n for n, p in small.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_batch_norm_and_dropout_follow_train_and_eval() -> None:
    class Dropped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    torch.manual_seed(0)
    small = halved(Net(nn.Sequential(ShuffleV2(), nn.Dropout2d(0.5), Dropped())))
    assert small.training
    norms = {name: module for name, module in small.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms.keys() == {"norm", "inner.0.branches.0.1", "inner.0.branches.1.1"}
    assert all(norm.num_features == len(norm.weight) for norm in norms.values())
    before = {name: norm.running_mean.clone() for name, norm in norms.items() if norm.running_mean is not None}
    small.eval()
    assert torch.equal(small(images(4)), small(images(4)))
    assert all(torch.equal(before[name], norms[name].running_mean) for name in norms)  # type: ignore[arg-type]
    small.train()
    for norm in norms.values():
        norm.eval()
    assert not torch.equal(small(images(4)), small(images(4)))  # dropout alone
    small.train()(images(4))
    for name, norm in norms.items():
        assert not torch.equal(before[name], norm.running_mean)  # type: ignore[arg-type]
        assert norm.num_batches_tracked == 1


def test_it_learns() -> None:
    torch.manual_seed(0)
    small = halved(Net(ShuffleV2()).eval()).train()
    optimizer = torch.optim.Adam(small.parameters(), 0.05)
    x, target, losses = images(8), torch.arange(8) % 4, []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(small(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_it_trains_as_the_original_does() -> None:
    torch.manual_seed(0)
    model = Net(ShuffleV2()).train()
    topology = trace(model, EXAMPLE)
    same = rewrite(model, topology, [range(group.width) for group in topology.groups])
    assert torch.equal(same(images(4)), model(images(4)))
    state = same.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_the_modes_of_modules_are_kept() -> None:
    torch.manual_seed(0)
    model = Net(ShuffleV2()).train()
    model.norm.eval()
    small: Any = halved(model)
    assert small.training and not small.norm.training


def test_frozen_parameters_stay_frozen() -> None:
    torch.manual_seed(0)
    model = Net(ShuffleV2())
    model.inner.requires_grad_(False)
    small = halved(model)
    frozen = {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"inner.{name}" for name, _ in model.inner.named_parameters()}


def test_what_is_computed_from_frozen_weights_is_frozen() -> None:
    torch.manual_seed(0)
    model = Net(nn.Sequential(Standardised(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 1)))
    model.inner[0].requires_grad_(False)  # type: ignore[index]
    trained = [name for name, p in halved(model).named_parameters() if p.requires_grad]
    assert set(trained) == {n for n, p in model.named_parameters() if p.requires_grad}


def test_what_is_computed_from_buffers_is_no_parameter() -> None:
    class Blur(nn.Module):
        row: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("row", torch.tensor([0.25, 0.5, 0.25]))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, torch.outer(self.row, self.row).expand(8, 1, 3, 3), groups=8)

    model = Net(Blur())
    topology = trace(model, EXAMPLE)
    small = halved(model)
    assert topology.parameters() == sum(p.numel() for p in model.parameters())
    assert dict(small.named_parameters()).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("name", REWRITTEN)
def test_its_state_can_be_saved_and_loaded(name: str, pruning: Any) -> None:
    model, topology = traced(name)
    kept = pruning.kept(topology)
    other = pruning.randomize(CASES[name].build())
    a, b = (rewrite(network, topology, kept) for network in (model, other))
    with torch.no_grad():
        assert not torch.equal(a(images(4)), b(images(4)))
        b.load_state_dict(a.state_dict())
        assert torch.equal(a(images(4)), b(images(4)))


def test_its_files_can_be_read_back(tmp_path: Path) -> None:
    model, topology = traced("shuffle v2")
    plan = uniform_plan(topology, model)
    small = apply_plan(model, plan)
    save_pruned(tmp_path, small, plan)
    with torch.no_grad():
        assert torch.equal(load_pruned(tmp_path, Net(ShuffleV2()))(images(4)), small(images(4)))


def test_it_can_be_copied_and_exported(pruning: Any) -> None:
    torch.manual_seed(0)
    small = halved(pruning.randomize(Net(ShuffleV2())))
    twin: Any = copy.deepcopy(small)
    exported = torch.export.export(small, (images(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    with torch.no_grad():
        assert torch.equal(twin(images(4)), small(images(4)))
        assert torch.equal(exported.module()(images(4)), small(images(4)))
        before = small(images(4))
        twin.stem.weight.zero_()
        assert torch.equal(small(images(4)), before)


def test_what_is_expanded_by_a_number_in_the_code_follows_the_channels() -> None:
    hard = Net(lambda x: x / (2 + x.amax(1, keepdim=True)).expand(-1, 8, -1, -1)).eval()
    soft = Net(lambda x: x / (2 + x.amax(1, keepdim=True))).eval()
    soft.load_state_dict(hard.state_dict())
    small = apply_plan(soft, uniform_plan(trace(soft, EXAMPLE), soft))
    assert not isinstance(small, fx.GraphModule)
    with torch.no_grad():
        torch.testing.assert_close(halved(hard)(images(3)), small(images(3)))


class OnItsDevice(nn.Module):
    """Makes a tensor of as many rows as images, where the images are."""

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(x * torch.ones(x.shape[0], 1, 1, 1, device=x.device), 2)


def test_it_follows_its_input_to_another_device() -> None:
    small = halved(Net(OnItsDevice())).to("meta")
    assert small(images(3).to("meta")).shape == (3, 4)


@pytest.mark.parametrize("name", REWRITTEN)
def test_plans_compose(name: str, pruning: Any) -> None:
    """Pruning it again is pruning once to what both plans kept."""
    model, topology = traced(name)
    first = pruning.kept(topology, (topology.full_widths() * 3 / 4).ceil().long())
    once = rewrite(model, topology, first)
    again = trace(once, EXAMPLE)
    assert again.full_widths().tolist() == [len(channels) for channels in first]
    assert again.macs() == topology.macs(again.full_widths())
    second = pruning.kept(again, (again.full_widths() / 2).ceil().long())
    twice = verified(once, again, second)
    both = [[a[i] for i in b] for a, b in zip(first, second, strict=True)]
    with torch.no_grad():
        assert relative_error(twice(images(4)), verified(model, topology, both)(images(4))) < 1e-6


def test_shared_layers_stay_shared(pruning: Any) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = self.norm(self.conv(shuffle(x, 2)))
            return x

    torch.manual_seed(0)
    model = pruning.randomize(Net(Shared()))
    topology = trace(model, EXAMPLE)
    kept = pruning.kept(topology, topology.full_widths() // 2)
    small: Any = rewrite(model, topology, kept)
    assert dict(small.named_parameters()).keys() == dict(model.named_parameters()).keys()
    with torch.no_grad():
        assert relative_error(small(images(4)), pruning.masked(model, topology, kept)(images(4))) < 1e-4
    small.train()(images(4))
    assert small.inner.norm.num_batches_tracked == 2
