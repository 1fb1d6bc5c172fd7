"""What is asked of a search: a network that can be pruned, or pruned again."""

import torch

import gnnrl_lightning as gl
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.problem.problem import make_prunable, prune_again
from gnnrl_lightning.pruning.apply import make_plan
from gnnrl_lightning.settings import SearchSettings


def test_groups_keep_their_names_though_their_first_channels_go() -> None:
    torch.manual_seed(0)
    network, settings = resnet_cifar(20, 10).eval(), SearchSettings()
    whole = make_prunable(network, torch.zeros(1, 3, 32, 32), settings)
    group = next(group for group in whole.unpruned.groups if group.name == "layer3.0.conv2")
    kept = {each.name: range(each.width) for each in whole.unpruned.groups} | {group.name: range(20, 32)}
    plan = make_plan(whole.unpruned, list(kept.values()))
    left = gl.apply_plan(network, plan)
    assert [each.name for each in gl.trace(left, torch.zeros(1, 3, 32, 32)).groups] != list(kept)
    again = prune_again(whole, left, plan, settings)
    assert [each.name for each in again.topology.groups] == list(kept)
    second = gl.uniform_plan(again.topology, left, keep=0.5)
    smaller = gl.apply_plan(network, plan.then(second)).eval()
    images = torch.randn(2, 3, 32, 32)
    at_once = again.remove(left, again.topology, [each.kept for each in second.groups])
    torch.testing.assert_close(smaller(images), at_once.eval()(images))
