"""From the winner of a search to the network that it hands on, tested at every stage."""

import time
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from gnnrl_lightning.app.asked import Asked
from gnnrl_lightning.app.command import choice
from gnnrl_lightning.core.ranks import agreed
from gnnrl_lightning.evaluation.final import Delivered, deliver
from gnnrl_lightning.evaluation.measure import test_top1
from gnnrl_lightning.pruning.apply import make_plan, planned_widths, widths_among
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.saved import write_pruned
from gnnrl_lightning.searching.explore import Explored
from gnnrl_lightning.training.fitting import fit
from gnnrl_lightning.training.supervised import Curve


@dataclass
class Outcome:
    """What a search has come to.

    Attributes:
        plan: Which channels of the original stay.
        delivered: The winner without its channels, and finished.
        network: The network that is handed on.
        networks: The original, that of the closed-form plan where the search has added to it, and `network`.
        sizes: Widths of these among all groups of the original, [G].
        top1: Accuracy in % of every stage on the test split.
        curve: Accuracy in the course of the fine-tuning.
    """

    plan: PruningPlan
    delivered: Delivered
    network: nn.Module
    networks: dict[str, nn.Module] = field(default_factory=dict)
    sizes: dict[str, Tensor] = field(default_factory=dict)
    top1: dict[str, float] = field(default_factory=dict)
    curve: Curve = field(default_factory=list)


def hand_on(asked: Asked, explored: Explored, clock: dict[str, float]) -> Outcome:
    """Builds, finishes, fine-tunes, tests and saves the winner.

    Args:
        asked: What was asked.
        explored: The search.
        clock: Gets the time when fine-tuning begins.
    """
    evaluator, widths = explored.evaluator, explored.widths
    cfg, data, problem, original = asked.cfg, asked.data, asked.problem, asked.original
    unpruned, kept = problem.prunable.unpruned, evaluator.kept(widths)
    plan = make_plan(problem.topology, kept)
    about = {"budget": cfg.budget, "cost": problem.cost.name, "seed": cfg.seed, "agent": choice("agent")}
    plan = replace(asked.earlier.then(plan) if asked.earlier else plan, **asked.plan_fields(**about))
    tunes = bool(cfg.finetune.epochs and cfg.finetune.max_steps)
    shown = partial(data.training_images, cfg.finish.batch_size, asked.run.device, evaluator.layout)
    delivered = deliver(evaluator, kept, cfg, shown, learns_on=tunes)
    opened = explored.opened
    outcome = Outcome(plan, delivered, delivered.final.network)

    test = partial(_test, outcome, asked)
    test("original", original, unpruned.full_widths())
    if opened is not None and not torch.equal(opened, widths):  # what the search has added to it
        names = [group.name for group in problem.topology.groups]
        test("closed-form", evaluator.network(opened), widths_among(names, opened, unpruned))
    test("pruned", outcome.network, planned_widths(unpruned, plan))
    _save(asked, outcome)
    if delivered.finished:
        outcome.network = delivered.network
        test("finished", outcome.network)
        _save(asked, outcome)
    clock["finetune"] = time.perf_counter()
    if tunes:
        checkpoint = asked.run.folder / "checkpoints" / "finetune.ckpt"
        teacher = original if cfg.finetune.distill else None
        network = outcome.network
        outcome.curve = fit(network, data, cfg.finetune, "finetune", asked.run, checkpoint, teacher)
        checkpoint.unlink(missing_ok=True)  # another winner of this search must not go on from it
        test("fine-tuned", network)
        _save(asked, outcome)
    agreed(None)  # the next stage reads what the first rank has written
    outcome.networks["pruned"] = outcome.network
    return outcome


def _save(asked: Asked, outcome: Outcome) -> None:
    """After every step, so that a run that is stopped leaves the best network so far."""
    if asked.run.is_first:
        write_pruned(asked.run.folder, outcome.network, outcome.plan)


def _test(outcome: Outcome, asked: Asked, name: str, network: nn.Module, widths: Tensor | None = None) -> None:
    outcome.top1[name] = test_top1(network, asked.data.test_dataloader(), asked.run.device, name)
    if widths is not None:
        outcome.networks[name], outcome.sizes[name] = network, widths
