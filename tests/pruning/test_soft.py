"""Soft filter pruning, and the zeros that it and group Fisher set."""

import copy
from typing import Any

import pytest
import torch
from oracle import Pruning
from test_importance_all import IMAGES, LABELS, residual, task_of
from tiny_networks import images, traced
from torch import Tensor, nn

from gnnrl_lightning.importance import soft
from gnnrl_lightning.importance.masks import zero_filters, zero_reads
from gnnrl_lightning.importance.soft import SoftPruning
from gnnrl_lightning.pruning.program import masked_output, tensors_of


def filters(model: nn.Module, slots: dict[tuple[str, int], Tensor]) -> dict[str, Tensor]:
    """Norm of every filter of each convolution, by the convolution's weight."""
    weights = {name: value for name, value in model.named_parameters() if value.dim() == 4 and (name, 0) in slots}
    return {name: value.detach().flatten(1).norm(dim=1) for name, value in weights.items()}


def test_what_is_zeroed_ranks_last_in_all_layers_of_its_group() -> None:
    model, topology = residual()
    task = task_of(topology)
    ranking = SoftPruning(images=16, batch_size=8, epochs=3, lr=0.01, p=2, seed=0)(model, task, IMAGES, LABELS)
    kept = ranking.kept(task.uniform)
    for group, scores, channels in zip(topology.groups, ranking.scores, kept, strict=True):
        assert (scores == 0).sum() == group.width - len(channels)
        assert scores[channels].min() > 0
    assert ranking.model is not None
    stays = topology.keep_mask(kept)
    for name, norms in filters(ranking.model, topology.slots).items():
        assert torch.equal(norms > 0, stays[topology.slots[name, 0]])


def test_what_was_zeroed_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, topology = residual()
    after: list[Tensor] = []  # which slots stayed, after every epoch

    def note(network: nn.Module, topology: Any, mask: Tensor) -> None:
        after.append(mask)
        zero_filters(network, topology, mask)

    monkeypatch.setattr(soft, "zero_filters", note)
    SoftPruning(images=16, batch_size=8, epochs=4, lr=0.1, p=2, seed=0)(model, task_of(topology), IMAGES, LABELS)
    assert len(after) == 4
    assert (~after[0] & after[-1]).any() and (after[0] & ~after[-1]).any()


def test_zeroed_filters_are_all_that_changes() -> None:
    """A BatchNorm's shift stays: without it no gradient would pass the ReLU, and nothing could come back."""
    model, topology = residual()
    network, mask = copy.deepcopy(model), topology.keep_mask([[0]] * len(topology.groups))
    zero_filters(network, topology, mask)
    for name, norms in filters(network, topology.slots).items():
        slots = topology.slots[name, 0]
        assert torch.equal(norms > 0, mask[slots] | (slots < 0))
    others = [name for name, value in model.named_parameters() if value.dim() == 1]
    assert others and all(torch.equal(network.get_parameter(name), model.get_parameter(name)) for name in others)


@pytest.mark.parametrize("name", ["shuffle v1", "shuffle v2", "slice", "transposed", "squeeze", "attention"])
def test_a_network_without_its_reads_computes_what_is_left(name: str, pruning: Pruning) -> None:
    model, topology = traced(name)
    kept = pruning.kept(topology, task_of(topology).uniform)
    if name == "attention":
        kept[0] = list(range(topology.groups[0].width))  # else its normalisation would be over other channels
    network, mask = copy.deepcopy(model), topology.keep_mask(kept)
    zero_reads(network, topology, mask)
    (expected,) = masked_output(tensors_of(model), topology, mask, images(3))
    with torch.no_grad():
        torch.testing.assert_close(network(images(3)), expected, rtol=1e-4, atol=1e-5)
        assert (model(images(3)) - expected).abs().max() > 1e-3
