"""Group Fisher pruning: which channel goes, what becomes of it, and where the loop ends."""

import copy
from typing import Any

import pytest
import torch
from test_importance_all import IMAGES, LABELS, residual, task_of
from test_importance_fisher import Residual
from tiny_networks import traced
from torch import Tensor, nn

from gnnrl_lightning.core.sgd import sgd_steps
from gnnrl_lightning.importance.fisher import activations
from gnnrl_lightning.importance.gates import gate_gradients
from gnnrl_lightning.importance.group_fisher import GroupFisher
from gnnrl_lightning.importance.masks import zero_reads
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.topology import trace


def group_fisher(**settings: Any) -> GroupFisher:
    return GroupFisher(
        **{"images": 16, "batch_size": 8, "lr": 0.01, "interval": 1, "channels_per_step": 1, "seed": 0, **settings}
    )


def cut(scores: list[Tensor], task: Task) -> list[list[int]]:
    """What stays where the lowest scores of the whole network go, one by one, until it is within the budget."""
    kept = [list(range(len(each))) for each in scores]
    order = sorted((float(score), g, c) for g, each in enumerate(scores) for c, score in enumerate(each))
    for _, group, channel in order:
        if int(task.cost(torch.tensor([len(channels) for channels in kept]))) <= task.allowed:
            break
        kept[group].remove(channel)
    return kept


def test_the_scores_cut_at_the_budget_are_where_the_loop_ended() -> None:
    """… and nothing reads what is gone, although the training went on: without it the copy computes the same."""
    model, topology = residual()
    task = task_of(topology)
    ranking = group_fisher(interval=2, channels_per_step=6)(model, task, IMAGES, LABELS)
    kept = cut(ranking.scores, task)
    widths = [len(channels) for channels in kept]
    assert min(widths) >= 1 and len({round(w / g.width, 1) for w, g in zip(widths, topology.groups, strict=True)}) > 1
    assert ranking.model is not None
    small = prune(ranking.model, topology, kept)
    with torch.no_grad():
        torch.testing.assert_close(small(IMAGES[:]), ranking.model(IMAGES[:]), rtol=1e-4, atol=1e-5)
    # One more would have stayed above the budget: the last to go was needed.
    last = max(
        (float(s), g, c) for g, each in enumerate(ranking.scores) for c, s in enumerate(each) if c not in kept[g]
    )
    widths[last[1]] += 1
    assert int(task.cost(torch.tensor(widths))) > task.allowed
    stays = topology.keep_mask(kept)  # … and all that is left is read
    for path, layer in ranking.model.named_modules():
        slots = topology.slots.get((f"{path}.weight", 1))
        if isinstance(layer, nn.Conv2d) and slots is not None:
            assert torch.equal(layer.weight.abs().sum((0, 2, 3)) > 0, stays[slots] | (slots < 0))


@pytest.mark.parametrize("interval", [1, 3])
def test_what_goes_has_the_least_sum_of_its_interval_for_its_memory(interval: int) -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    allowed = topology.macs() // 2
    task = Task(topology, topology.macs, allowed, topology.full_widths(), lambda: [])
    scores = torch.cat(group_fisher(interval=interval)(model, task, IMAGES, LABELS).scores)
    assert sorted(scores.tolist()) == list(range(1, 12))
    sums, mask, network = torch.zeros(11), torch.ones(11, dtype=torch.bool), copy.deepcopy(model)
    for step, rows in enumerate(
        sgd_steps(network, IMAGES, LABELS, batch_size=8, lr=0.01, steps=3 * interval, seed=0), 1
    ):
        zero_reads(network, topology, mask)
        sums += gate_gradients(network, topology, IMAGES[rows], LABELS[rows]).square().sum(0)
        if step % interval == 0:
            least = torch.where(mask, sums / activations(topology), torch.inf).argmin()
            assert scores[least] == step // interval
            mask[least], sums = False, torch.zeros(11)


def test_what_is_left_ranks_by_what_it_has_in_the_end() -> None:
    """Within the budget from the start nothing goes, and the order is that of the sums of one interval."""
    torch.manual_seed(0)
    model = Residual().eval()
    topology = trace(model, torch.zeros(1, 3, 8, 8))
    task = Task(topology, topology.macs, topology.macs(), topology.full_widths(), lambda: [])
    sums, network = torch.zeros(11), copy.deepcopy(model)
    for rows in sgd_steps(network, IMAGES, LABELS, batch_size=8, lr=0.01, steps=2, seed=0):
        sums += gate_gradients(network, topology, IMAGES[rows], LABELS[rows]).square().sum(0)
    scores = torch.cat(group_fisher(interval=2)(model, task, IMAGES, LABELS).scores)
    assert torch.equal(scores.argsort(), (sums / activations(topology)).argsort())


def test_groups_keep_multiples_of_the_divisor_and_what_they_must() -> None:
    model, _ = residual()
    topology = trace(model, torch.zeros(1, 3, 8, 8), divisor=3, min_keep=0.4)
    lowest = int(topology.macs(topology.min_widths()))
    task = Task(topology, topology.macs, lowest, topology.min_widths(), lambda: [])
    ranking = group_fisher(channels_per_step=8)(model, task, IMAGES, LABELS)
    assert ranking.model is not None
    kept = ranking.kept(topology.min_widths())  # all that may go has gone
    small = prune(ranking.model, topology, kept)
    with torch.no_grad():
        torch.testing.assert_close(small(IMAGES[:]), ranking.model(IMAGES[:]), rtol=1e-4, atol=1e-5)


def test_a_computed_weight_cannot_be_kept_at_zero() -> None:
    _, topology = traced("standardised")
    with pytest.raises(ValueError, match="is no parameter but computed; take importance=fisher"):
        group_fisher().check(topology)
