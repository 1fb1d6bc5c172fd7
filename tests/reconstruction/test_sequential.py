"""Refit layer after layer."""

import torch
from closed_forms import closed_forms, error, pictures
from torch import nn

from gnnrl_lightning.evaluation.recovery import recalibrate
from gnnrl_lightning.models.resnet_cifar import resnet_cifar


def network() -> nn.Module:
    torch.manual_seed(0)
    model = resnet_cifar(8, 6)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(pictures(64)[:])
    recalibrate(model.eval(), pictures(64), 64)
    return model


def test_with_nothing_removed_nothing_changes() -> None:
    found = closed_forms(network(), pictures(64))
    kept = [list(range(group.width)) for group in found.topology.groups]
    assert error(found, kept, found.sequential_values(kept), pictures(32, seed=1)) < 0.02


def test_it_is_better_than_the_plain_refit_where_errors_add_up() -> None:
    found = closed_forms(network(), pictures(256))
    half = [sorted(order[len(order) // 2 :].tolist()) for order in found.orders]
    others = pictures(128, seed=1)
    plain, sequential = (error(found, half, v, others) for v in (found.values(half), found.sequential_values(half)))
    assert sequential < plain < error(found, half, {}, others)
