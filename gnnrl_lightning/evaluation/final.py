"""The network that a search hands on: without its channels, refitted, recovered, finished."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from gnnrl_lightning.core.inputs import Inputs
from gnnrl_lightning.core.ranks import agreed, hand_on_weights
from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.evaluation.finished import Finished, finished
from gnnrl_lightning.pruning.verify import verified
from gnnrl_lightning.settings import SearchSettings

log = logging.getLogger(__name__)


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
    delivered = Delivered(final, learned)
    hand_on_weights(final.network)
    if delivered.finished:
        hand_on_weights(delivered.network)
    return delivered
