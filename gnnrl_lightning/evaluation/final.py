"""The network that a search hands on: without its channels, refitted, recovered, finished."""

import copy
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from gnnrl_lightning.core.inputs import Inputs, arguments_by_name, call, laid_out, tensors_in
from gnnrl_lightning.core.layout import layout_to_learn
from gnnrl_lightning.core.ranks import agreed
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.reward import divergence
from gnnrl_lightning.pruning.compare import relative_error
from gnnrl_lightning.pruning.program import tensors_of
from gnnrl_lightning.pruning.rewrite import rewrite
from gnnrl_lightning.pruning.verify import verified
from gnnrl_lightning.reconstruction.finish import finish, targets
from gnnrl_lightning.settings import FinishConfig, SearchSettings

log = logging.getLogger(__name__)

_SAME = 1e-3
"""Relative error between two forms of one network, on whatever device."""
_LAST = 10
"""Steps over which the error in the end is averaged."""


@dataclass(frozen=True)
class Final:
    """The network and how it got its weights.

    Attributes:
        network: In eval mode.
        weights: cut, refitted, or refitted in sequence.
        rewards: On the whole reward split, by these names, where there was a choice.
    """

    network: nn.Module
    weights: str
    rewards: dict[str, float]


def final_network(evaluator: Evaluator, kept: list[list[int]]) -> Final:
    """Builds and checks the network with these channels, with refitted weights unless cut ones have a better reward.

    Args:
        evaluator: Of the search.
        kept: The channels of each group that stay.

    Raises:
        UserError: If the pruned network computes something else.
    """

    def recovered(network: nn.Module) -> nn.Module:
        evaluator.recover(network)
        return network.eval()

    values = evaluator.values(kept)
    network = recovered(verified(evaluator.model, evaluator.topology, kept, values))
    if not values:
        return Final(network, "cut", {})
    # Of the same form, which has just been proved.
    refitted, cut = network, recovered(evaluator.remove(evaluator.model, evaluator.topology, kept))
    rewards = agreed({"refitted": evaluator.judge.of_finished(refitted), "cut": evaluator.judge.of_finished(cut)})
    # Each layer is refitted by itself: in a network of chance weights all of them together may be worse than none.
    if rewards["cut"] > rewards["refitted"]:
        log.warning("weights are only cut: the reward is %(cut).4g so, refitted %(refitted).4g", rewards)
        return Final(cut, "cut", rewards)
    return Final(refitted, "refitted", rewards)


def refitted_in_sequence(evaluator: Evaluator, kept: list[list[int]], final: Final) -> Final:
    """Refits the network layer after layer as well, and takes that where rewards say that it is better.

    For where nothing is learned afterwards, which its lead does not outlive.

    Args:
        evaluator: Of the search.
        kept: The channels of each group that stay.
        final: From `final_network`.
    """
    if final.weights != "refitted" or evaluator.reconstruction is None:
        return final
    log.info("sequential refit: layer after layer")
    again = evaluator.reconstruction.sequential_values(kept)
    other = verified(evaluator.model, evaluator.topology, kept, again).eval()
    rewards = agreed(final.rewards | {"refitted in sequence": evaluator.judge.of_finished(other)})
    log.info("rewards on the whole reward split: %s", ", ".join(f"{name} {x:.4g}" for name, x in rewards.items()))
    if rewards["refitted in sequence"] > rewards["refitted"]:  # of equal ones the simple one
        return Final(other, "refitted in sequence", rewards)
    return replace(final, rewards=rewards)


@dataclass(frozen=True)
class Finished:
    """A network that has learned the unpruned one's activations, and whether that was worth it.

    Attributes:
        network: In eval mode; the very network that was given where it was not.
        divergence: From the unpruned network's scores on the whole reward split, in nats, before and after; None where
            rewards are scores of the user's own.
        error: Of the activations, relative to their variance, in the first and in the last steps.
        scores: Before and after, where rewards are scores of the user's own; else None.
    """

    network: nn.Module
    divergence: tuple[float, float] | None
    error: tuple[float, float]
    scores: tuple[float, float] | None = None

    @property
    def taken(self) -> bool:
        """Whether the network came nearer to the unpruned one on images that it did not learn from, or scores more."""
        if self.scores is not None:
            return self.scores[1] > self.scores[0]
        assert self.divergence is not None
        return self.divergence[1] < self.divergence[0]


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
    try:
        student = rewrite(model, topology, kept)
        _copy_tensors(network, student)
        with torch.no_grad():
            pairs = zip(*(tensors_in(call(each.eval(), judge.example)) for each in (student, network)), strict=True)
            differs = max(relative_error(mine, other) for mine, other in pairs)
    except Exception as failure:  # where surgery was right nobody has tried the graph before
        log.info("nothing is finished: %s does not run as a graph (%s)", type(network).__name__, failure)
        return None
    if differs > _SAME:
        log.info("nothing is finished: as a graph %s differs by %.1e", type(network).__name__, differs)
        return None
    if not any(parameter.requires_grad for parameter in student.parameters()):
        log.info("nothing is finished: all parameters are frozen")
        return None
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
    result = copy.deepcopy(network)
    _copy_tensors(student, result)
    if not math.isfinite(losses[-1]):
        log.warning("finish diverged with finish.lr=%g; lower it, e.g. finish.lr=%g", settings.lr, settings.lr / 10)
        losses.pop()
        if not losses:
            return None
    last = losses[-_LAST:]
    error = losses[0], sum(last) / len(last)
    result.eval()
    if judge.score is not None:
        found = Finished(result, None, error, agreed((judge.of_finished(network), judge.of_finished(result))))
    else:
        expected = judge.log_probabilities(model)
        before, after = (divergence(expected, judge.log_probabilities(each)) for each in (network, result))
        found = Finished(result, agreed((before, after)), error)
    log.info(
        "finished: error of the activations %.3f to %.3f; %s %.4f to %.4f%s",
        *error,
        "divergence from the unpruned network" if found.divergence else "score",
        *(found.divergence or found.scores or ()),
        "" if found.taken else ": not taken",
    )
    return found if found.taken else replace(found, network=network)


@dataclass(frozen=True)
class Delivered:
    """What a search hands on.

    Attributes:
        final: The network without its channels.
        finish: What it has learned of the unpruned one; None where that was not tried.
    """

    final: Final
    finish: Finished | None

    @property
    def finished(self) -> bool:
        """Whether what it has learned is taken."""
        return self.finish is not None and self.finish.taken

    @property
    def network(self) -> nn.Module:
        """The network as it is handed on, in eval mode."""
        return self.finish.network if self.finish is not None and self.finish.taken else self.final.network


def deliver(
    evaluator: Evaluator,
    kept: list[list[int]],
    settings: SearchSettings,
    batches: Callable[[], Iterator[Inputs]],
    learns_on: bool = False,
) -> Delivered:
    """Builds the network with these channels, and makes the best of it without labels.

    Args:
        evaluator: Of the search.
        kept: The channels of each group that stay.
        settings: Of the finish and of the sequential refit.
        batches: Training images to learn from, if anything is learned.
        learns_on: Whether it is fine-tuned afterwards.

    Raises:
        UserError: If the pruned network computes something else.
    """
    final = final_network(evaluator, kept)
    learned = finished(evaluator, kept, final.network, batches(), settings.finish) if settings.finish.enabled else None
    if settings.refit.sequential and not learns_on and not (learned is not None and learned.taken):
        final = refitted_in_sequence(evaluator, kept, final)
    return Delivered(final, learned)


@torch.no_grad()
def _copy_tensors(source: nn.Module, target: nn.Module) -> None:
    """Gives a network the tensors that have the same names in another."""
    values = tensors_of(source)
    for name, value in tensors_of(target).items():
        if name in values:
            value.copy_(values[name])
