"""The finish of the network that a search hands on: what it learns without labels, and whether that is taken."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from gnnrl_lightning.core.copies import copied
from gnnrl_lightning.core.inputs import Inputs, arguments_by_name, call, laid_out, tensors_in
from gnnrl_lightning.core.layout import layout_to_learn
from gnnrl_lightning.core.ranks import agreed
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.reward import divergence
from gnnrl_lightning.pruning.compare import relative_error
from gnnrl_lightning.pruning.program import tensors_of
from gnnrl_lightning.pruning.rewrite import rewrite
from gnnrl_lightning.reconstruction.finish import finish, targets
from gnnrl_lightning.settings import FinishConfig

log = logging.getLogger(__name__)

_SAME = 1e-3
"""Relative error between two forms of one network, on whatever device."""
_LAST = 10
"""Steps over which the error in the end is averaged."""


@dataclass(frozen=True)
class Finished:
    """A network that has learned the unpruned one's activations, and whether that was worth it.

    Attributes:
        network: In eval mode; the very network that was given where it was not.
        divergence: From the unpruned network's scores on the whole reward split, in nats, before and after; None where
            rewards are scores of the user's own.
        error: Of the activations, relative to their variance, in the first and in the last steps.
        scores: Before and after, where rewards are scores of the user's own; else None.
        rewards: Before and after, where they are accuracies; else None.
        noise: By how much two of these may differ by chance: twice the standard error.
    """

    network: nn.Module
    divergence: tuple[float, float] | None
    error: tuple[float, float]
    scores: tuple[float, float] | None = None
    rewards: tuple[float, float] | None = None
    noise: float = 0.0

    @property
    def taken(self) -> bool:
        """Whether the network came nearer to the unpruned one on images that it did not learn from, or scores more.

        Not if its reward has fallen for it by more than chance explains.
        """
        if self.scores is not None:
            return self.scores[1] > self.scores[0]
        assert self.divergence is not None
        lost = 0.0 if self.rewards is None else self.rewards[0] - self.rewards[1]
        return self.divergence[1] < self.divergence[0] and lost <= self.noise


def finished(
    evaluator: Evaluator, kept: list[list[int]], network: nn.Module, batches: Iterator[Inputs], settings: FinishConfig
) -> Finished | None:
    """Lets the final network learn the unpruned one's activations, and takes that where rewards' images say so.

    Args:
        evaluator: Of the search.
        kept: The channels of each group that stay.
        network: From `final_network`; unchanged.
        batches: Training images, augmented if that is possible.
        settings: How long.

    Returns:
        None where the network cannot be run as a graph beside the unpruned one.
    """
    model, topology, judge = evaluator.model, evaluator.topology, evaluator.judge
    student, fault = _student(evaluator, kept, network)
    if fault := agreed(fault):
        log.info("nothing is finished: %s", fault)
        return None
    assert student is not None
    compared = targets(topology, topology.keep_mask(kept))
    log.info("finish: %d steps towards %d activations of the unpruned network", settings.steps, len(compared))
    layout = layout_to_learn(student, judge.example)
    losses = finish(
        student,
        rewrite(model, topology, topology.all_channels()),
        compared,
        (tuple(arguments_by_name(model, laid_out(batch, layout)).values()) for batch in batches),
        settings.steps,
        settings.lr,
    )
    result = copied(network)
    _copy_tensors(student, result)
    if not math.isfinite(losses[-1]):
        log.warning("finish diverged with finish.lr=%g; lower it, e.g. finish.lr=%g", settings.lr, settings.lr / 10)
        losses.pop()
    if not agreed(bool(losses)):
        return None
    losses = losses or [math.nan]
    last = losses[-_LAST:]
    error = losses[0], sum(last) / len(last)
    result.eval()
    found = _compared(evaluator, network, result, error)
    log.info(
        "finished: error of the activations %.3f to %.3f; %s %.4f to %.4f%s",
        *error,
        "divergence from the unpruned network" if found.divergence else "score",
        *(found.divergence or found.scores or ()),
        "" if found.taken else ": not taken",
    )
    if found.rewards is not None and not found.taken:
        log.info("rewards before and after: %.2f, %.2f", *found.rewards)
    return found if found.taken else replace(found, network=network)


def _student(evaluator: Evaluator, kept: list[list[int]], network: nn.Module) -> tuple[fx.GraphModule | None, str]:
    """The network as a graph, and why it cannot learn as one; empty if it can."""
    name = type(network).__name__
    try:
        student = rewrite(evaluator.model, evaluator.topology, kept)
        _copy_tensors(network, student)
        example = evaluator.judge.example
        with torch.no_grad():
            pairs = zip(*(tensors_in(call(each.eval(), example)) for each in (student, network)), strict=True)
            differs = max(relative_error(mine, other) for mine, other in pairs)
    except Exception as failure:  # where surgery was right nobody has tried the graph before
        return None, f"{name} does not run as a graph ({failure})"
    if differs > _SAME:
        return student, f"as a graph {name} differs by {differs:.1e}"
    if not any(parameter.requires_grad for parameter in student.parameters()):
        return student, "all parameters are frozen"
    return student, ""


def _compared(evaluator: Evaluator, network: nn.Module, result: nn.Module, error: tuple[float, float]) -> Finished:
    """What the finish was worth, on images that it did not learn from."""
    judge = evaluator.judge
    if judge.score is not None:
        return Finished(result, None, error, agreed((judge.of_finished(network), judge.of_finished(result))))
    expected = judge.log_probabilities(evaluator.model)
    before, after = (divergence(expected, judge.log_probabilities(each)) for each in (network, result))
    if judge.unpruned is not None:  # rewards are divergences
        return Finished(result, agreed((before, after)), error)
    rewards, count = agreed((judge.of_finished(network), judge.of_finished(result))), len(judge.samples)
    share = 1 + rewards[0] / 100
    noise = 200 * math.sqrt(max(share * (1 - share), 1 / count) / count)
    return Finished(result, agreed((before, after)), error, None, rewards, noise)


@torch.no_grad()
def _copy_tensors(source: nn.Module, target: nn.Module) -> None:
    """Gives a network the tensors that have the same names in another."""
    values = tensors_of(source)
    for name, value in tensors_of(target).items():
        if name in values:
            value.copy_(values[name])
