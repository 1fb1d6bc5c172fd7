"""By filters and scales: what is planted is found, coupled channels are judged together, ties go the same way."""

import copy
from typing import Any

import pytest
import torch
from test_importance_fisher import Residual
from tiny_networks import EXAMPLE, traced
from torch import Tensor, nn

from gnnrl_lightning.data import IMAGENET, HeldImages
from gnnrl_lightning.importance.bn_scale import BatchNormScale
from gnnrl_lightning.importance.fpgm import GeometricMedian
from gnnrl_lightning.importance.magnitude import Magnitude
from gnnrl_lightning.importance.random import RandomImportance
from gnnrl_lightning.importance.ranking import Importance
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.pruning.apply import uniform_plan
from gnnrl_lightning.pruning.channels import magnitude, most_important
from gnnrl_lightning.topology import Topology, trace

NONE = HeldImages(torch.zeros(0, 3, 8, 8).byte(), IMAGENET)


def scores_of(importance: Importance, model: nn.Module, topology: Topology) -> list[Tensor]:
    task = Task(topology, topology.macs, topology.macs(), topology.full_widths(), lambda: [])
    assert importance.images == 0
    return importance(model, task, NONE, torch.zeros(0).long()).scores


@pytest.mark.parametrize("p", [1, 2])
def test_planted_filters_are_found(p: int) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    model[0].weight.data[[1, 4, 6]] *= 100
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    (scores,) = magnitude(model, topology, p)
    assert scores.shape == (8,)
    assert most_important([scores], torch.tensor([3])) == [[1, 4, 6]]
    model[0].weight.data[[0, 7]] = 0
    (scores,) = magnitude(model, topology, p)
    assert set(range(8)) - set(most_important([scores], torch.tensor([6]))[0]) == {0, 7}


def test_the_orders_of_the_norm_differ() -> None:
    model: Any = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1))
    model[0].weight.data = torch.tensor([[3.0, 3.0], [5.0, 0.0]]).view(2, 2, 1, 1)
    topology = trace(model, torch.zeros(1, 2, 4, 4))
    one = torch.tensor([1])
    assert most_important(magnitude(model, topology, 1), one) == [[0]]  # 6 against 5
    assert most_important(magnitude(model, topology, 2), one) == [[1]]  # 4.2 against 5
    with pytest.raises(ValueError, match=r"importance\.p=3 must be 1 or 2"):
        Magnitude(3)


def test_coupled_layers_are_heard_equally_whatever_their_scale() -> None:
    torch.manual_seed(0)
    model: Any = resnet_cifar(8, 10)
    # Two writers of the same channels: the loud one prefers channel 2 a little, the quiet one channel 5 strongly.
    stem, block = model.conv1.weight.data, model.layer1[0].conv2.weight.data
    stem.fill_(1000.0)
    stem[2] *= 1.1
    block.fill_(0.001)
    block[5] *= 3
    for stage in ("layer2", "layer3"):
        model.get_submodule(f"{stage}.0.conv2").weight.data.fill_(1.0)
    topology = trace(model, torch.zeros(1, 3, 16, 16))
    trunk = next(i for i, g in enumerate(topology.groups) if any(m.parameter == "conv1.weight" for m in g.members))
    scores = magnitude(model, topology, 1)[trunk]
    assert scores.argsort(descending=True)[:2].tolist() == [5, 2]


def test_channels_without_a_writer_are_judged_by_their_readers() -> None:
    """The zeros that option A pads with belong to no filter; here they are read by a convolution all the same."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.ConstantPad3d((0, 0, 0, 0, 2, 2), 0.0), nn.Conv2d(7, 2, 1))
    body: Any = nn.Sequential(nn.Conv2d(3, 3, 1), *model)
    body[2].weight.data[:, [0, 1, 5, 6]] = torch.tensor([1.0, 9.0, 2.0, 8.0]).view(1, 4, 1, 1)
    topology = trace(body, torch.zeros(1, 3, 4, 4))
    scores = magnitude(body, topology, 1)
    padded = next(i for i, group in enumerate(topology.groups) if group.width == 4)
    assert most_important([scores[padded]], torch.tensor([2])) == [[1, 3]]


def test_ties_keep_the_lower_number() -> None:
    model: Any = resnet_cifar(8, 10)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    topology = trace(model, torch.zeros(1, 3, 16, 16))
    plans = [uniform_plan(topology, model, keep=0.5) for _ in range(2)]
    assert plans[0] == plans[1]
    assert all(group.kept == tuple(range(group.width // 2)) for group in plans[0].groups)


def test_a_grouped_convolution_judges_by_the_columns_of_each_block() -> None:
    """No filter writes the zeros that are padded here; they are read in two blocks, and go in pairs."""
    body: Any = nn.Sequential(
        nn.ConstantPad3d((0, 0, 0, 0, 2, 2), 0.0), nn.Conv2d(8, 4, 1, groups=2), nn.Conv2d(4, 2, 1)
    )
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), *body)
    topology = trace(model, torch.zeros(1, 3, 4, 4))
    columns = topology.slots["2.weight", 1]
    assert columns.shape == (2, 4)
    slots = columns[0, :2]  # padded before the channels: the first two of the first block
    padded = int(topology.group_of_slot[slots[0]])
    weight = model[2].weight.data.view(2, 2, 4)
    weight.fill_(0.1)
    weight[0, :, 1] = 9.0
    scores = magnitude(model, topology, 1)[padded]
    start = int((topology.group_of_slot < padded).sum())
    assert scores.argmax() == slots[1] - start


@pytest.mark.parametrize("p", [1, 2])
def test_computed_weights_are_judged_by_their_values(p: int) -> None:
    model: Any
    model, topology = traced("standardised")
    plain = copy.deepcopy(model)
    for i in (0, 2):
        layer = plain.inner[i]
        computed = layer.computed().detach()
        plain.inner[i] = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size)
        plain.inner[i].weight.data = computed
    expected = magnitude(plain, trace(plain, EXAMPLE), p)
    for score, other in zip(magnitude(model, topology, p), expected, strict=True):
        torch.testing.assert_close(score, other)


def test_fpgm_removes_what_the_other_filters_say_too() -> None:
    """On a line 0 and 10 are far from all, 4, 5 and 6 in the middle: by their norm 0 would go, and 10 last."""
    model: Any = nn.Sequential(nn.Conv2d(1, 5, 1, bias=False), nn.Conv2d(5, 2, 1))
    model[0].weight.data = torch.tensor([0.0, 4.0, 5.0, 6.0, 10.0]).view(5, 1, 1, 1)
    (scores,) = scores_of(GeometricMedian(), model, trace(model, torch.zeros(1, 1, 4, 4)))
    distances = torch.tensor([25.0, 13, 12, 13, 25])
    torch.testing.assert_close(scores, distances / distances.mean())


def test_fpgm_finds_duplicates_in_a_coupled_group() -> None:
    """Filters that both writers of a trunk have three times are close to each other, whatever their norm."""
    torch.manual_seed(0)
    model = Residual()
    for layer in (model.stem, model.b):
        layer.weight.data[[0, 4]] = layer.weight.data[2] = 2 * layer.weight.data[2]
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    trunk, _ = scores_of(GeometricMedian(), model, topology)
    assert set(trunk.argsort()[:3].tolist()) == {0, 2, 4}
    assert set(magnitude(model, topology, 2)[0].argsort()[-3:].tolist()) == {0, 2, 4}


def test_bn_scale_hears_all_layers_that_a_channel_runs_through() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
    )
    model[1].weight.data = torch.tensor([1.0, -2.0, 3.0])
    model[3].weight.data = torch.tensor([0.0, 50.0, -10.0])
    (scores,) = scores_of(BatchNormScale(), model, trace(model, torch.zeros(1, 3, 8, 8)))
    torch.testing.assert_close(scores, torch.tensor([0.5 + 0, 1 + 2.5, 1.5 + 0.5]) / 2)


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(4, affine=False)])
def test_bn_scale_needs_a_scale(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), norm, nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match=r"those of 2 have none; take importance=l1"):
        BatchNormScale().check(trace(model, torch.zeros(1, 3, 8, 8)))


def test_random_scores_are_any() -> None:
    model, topology = traced("shuffle v1")
    one, other = (torch.cat(scores_of(RandomImportance(seed), model, topology)) for seed in (0, 1))
    assert len(one.unique()) == len(one) and not torch.equal(one, other)
    assert one.min() >= 0 and one.max() < 1
