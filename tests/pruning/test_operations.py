"""For each kind of operation: what can be pruned, that the pruned network computes what it must, and what it costs."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from oracle import Pruning
from tiny_networks import CASES, EXAMPLE, Net, SpatialAttention, Standardised, images, traced
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from gnnrl_lightning.pruning.apply import apply_plan, make_plan, uniform_plan
from gnnrl_lightning.pruning.compare import relative_error
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.pruning.verify import provable, verified
from gnnrl_lightning.topology import Topology, trace


@cache
def pruned(name: str) -> list[tuple[list[list[int]], nn.Module]]:
    """Three plans for one of the tiny networks, and what each leaves of it."""
    model, topology = traced(name)
    pruning = Pruning()
    halves = torch.tensor([max(1, group.width // 2) for group in topology.groups])
    # All but the first: no block, half or stride is what it was.
    shifted = [list(range(min(1, group.width - 1), group.width)) for group in topology.groups]
    plans = [shifted, pruning.kept(topology, halves), pruning.kept(topology)]
    return [(kept, verified(model, topology, kept)) for kept in plans]


def flat(output: Any) -> Tensor:
    return torch.cat([leaf.flatten(1) for leaf in pytree.tree_leaves(output)], 1)


def expected(name: str, model: Any, topology: Topology, kept: list[list[int]], x: Tensor) -> Tensor:
    """What the network must compute without these channels; see `Case.oracle`."""
    oracle = CASES[name].oracle
    if oracle == "narrow":
        left = kept[0]
        inner = model.inner(model.norm(model.stem(x)).relu()[:, left])
        return F.linear(inner.mean((2, 3)), model.head.weight[:, left], model.head.bias)
    if oracle == "twin":
        model = copy.deepcopy(model)
        for i, layer in enumerate(model.inner):
            if isinstance(layer, Standardised):
                plain = model.inner[i] = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size)
                plain.weight.data, plain.bias = layer.computed().detach(), layer.bias
        topology = trace(model, EXAMPLE)
    return flat(Pruning().masked(model, topology, kept, silent=oracle == "silent")(x))


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_locked_that_need_not_be(name: str) -> None:
    _, topology = traced(name)
    assert tuple(group.width for group in topology.groups) == CASES[name].widths
    assert {reason for reason, _ in topology.locked} == {"network output"}


@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_is_left_at_any_batch_size(name: str) -> None:
    model, topology = traced(name)
    everything = [list(range(group.width)) for group in topology.groups]
    with torch.no_grad():
        for kept, small in pruned(name):
            for count in (1, 2, 3):
                reference = expected(name, model, topology, kept, images(count))
                assert relative_error(flat(small(images(count))), reference) < 1e-4
            # Otherwise nothing was removed.
            assert kept == everything or relative_error(reference, flat(model(images(count)))) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_the_users_class_stays_unless_numbers_of_channels_are_in_its_forward(name: str) -> None:
    model, _ = traced(name)
    rewritten = [isinstance(small, fx.GraphModule) for _, small in pruned(name)]
    assert any(rewritten) == CASES[name].rewritten
    assert all(type(small).__name__ == type(model).__name__ for _, small in pruned(name))


@pytest.mark.parametrize("name", CASES)
def test_a_way_is_only_proved_if_it_is_right_for_any_plan(name: str) -> None:
    model, topology = traced(name)
    same, way = provable(model, topology)
    assert same is topology  # no group had to be locked
    if way is prune:
        assert not any(isinstance(small, fx.GraphModule) for _, small in pruned(name))


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_costs_are_those_of_the_pruned_network(name: str) -> None:
    _, topology = traced(name)
    widths = torch.tensor([[len(channels) for channels in kept] for kept, _ in pruned(name)])
    macs, parameters = topology.macs(widths).tolist(), topology.parameters(widths).tolist()
    for (_, small), some_macs, some_parameters in zip(pruned(name), macs, parameters, strict=True):
        # The fused kernel of attention on CPUs is one that the counter of some versions of torch does not know.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            small(images(3))
        assert counter.get_total_flops() == 2 * 3 * some_macs
        assert sum(p.numel() for p in small.parameters()) == some_parameters


@pytest.mark.parametrize("name", ["shuffle v1", "standardised", "efficient attention", "einsum", "dict", "view"])
def test_costs_are_per_image_whatever_the_batch_of_the_example(name: str) -> None:
    model, topology = traced(name)
    topologies = [topology, *(trace(model, torch.zeros(count, 3, 8, 8)) for count in (2, 5))]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images(5))
    widths = topologies[0].min_widths()
    assert {topology.macs() for topology in topologies} == {counter.get_total_flops() // 10}
    assert len({int(topology.macs(widths)) for topology in topologies}) == 1


def test_outputs_keep_their_structure() -> None:
    for name, kind in (("tuple", tuple), ("list", list), ("dict", dict)):
        outputs = pruned(name)[0][1](images(2))
        assert type(outputs) is kind and len(outputs) == 2
    assert list(outputs) == ["fine", "coarse"] and type(outputs["coarse"]) is list


def test_one_channel_may_be_left_for_a_reduction_over_channels(pruning: Any) -> None:
    model: Any = pruning.randomize(Net(SpatialAttention()))
    small = verified(model, trace(model, EXAMPLE), [[5], [0]])
    with torch.no_grad():
        inner = model.inner(model.norm(model.stem(images(2))).relu()[:, [5]]).mean((2, 3))
        reference = F.linear(inner, model.head.weight[:, [5]], model.head.bias)
        assert relative_error(small(images(2)), reference) < 1e-4


def test_a_channel_that_scales_the_others_stays(pruning: Any) -> None:
    model = pruning.randomize(Net(lambda x: x * x[:, :1].sigmoid()))
    topology = trace(model, EXAMPLE)
    assert topology.full_widths().max() == 7
    kept = [[0, 3, 6] if group.width == 7 else [0] for group in topology.groups]
    small = verified(model, topology, kept)
    with torch.no_grad():
        assert relative_error(small(images(2)), pruning.masked(model, topology, kept)(images(2))) < 1e-4


def test_a_slice_may_lose_all_its_channels(pruning: Any) -> None:
    model = pruning.randomize(Net(lambda x: torch.cat([x[:, 2:5], x[:, 5:], x[:, :2]], 1)))
    topology = trace(model, EXAMPLE)
    kept = [[0, 3, 4]]
    small = verified(model, topology, kept)
    with torch.no_grad():
        assert relative_error(small(images(2)), pruning.masked(model, topology, kept)(images(2))) < 1e-4


def test_attention_shrinks_within_its_heads() -> None:
    """Each head loses the same of its channels; the scale of its products stays what it was trained with."""
    model: Any
    model, topology = traced("scaled dot product")
    small: Any = verified(model, topology, [range(8), [1, 2]])
    rows = [8 * i + 4 * head + channel for i in range(3) for head in range(2) for channel in (1, 2)]
    assert torch.equal(small.qkv.weight, model.qkv.weight[rows])
    assert torch.equal(small.project.weight, model.project.weight[:, [1, 2, 5, 6]])


def test_a_plan_is_all_that_it_takes() -> None:
    model, topology = traced("shuffle v1")
    plan = uniform_plan(topology, model)
    small = apply_plan(model, plan)
    assert sum(p.numel() for p in small.parameters()) == topology.parameters(torch.tensor(plan.widths))
    whole = apply_plan(model, make_plan(topology, [range(group.width) for group in topology.groups]))
    with torch.no_grad():
        assert torch.equal(whole(images(2)), model(images(2)))
