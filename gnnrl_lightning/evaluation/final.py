"""The network that a search hands on: without its channels, refitted, recovered."""

import logging
from dataclasses import dataclass

from torch import nn

from gnnrl_lightning.evaluation.evaluator import Evaluator
from gnnrl_lightning.pruning.verify import verified

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


def final_network(evaluator: Evaluator, kept: list[list[int]], sequential: bool) -> Final:
    """Builds and checks the network with these channels.

    Args:
        evaluator: Of the search.
        kept: The channels of each group that stay.
        sequential: Whether to refit it layer after layer as well, and take that where rewards say that it is better.
            Its lead does not outlive a fine-tuning.

    Raises:
        ValueError: If the pruned network computes something else.
    """
    values = evaluator.values(kept)
    network = verified(evaluator.model, evaluator.topology, kept, values)
    evaluator.recover(network)
    network.eval()
    if not (sequential and values and evaluator.reconstruction):
        return Final(network, "refitted" if values else "cut", {})
    log.info("sequential refit: layer after layer")
    again = evaluator.reconstruction.sequential_values(kept)
    other = verified(evaluator.model, evaluator.topology, kept, again).eval()
    rewards = {"refitted": evaluator.reward_of(network), "refitted in sequence": evaluator.reward_of(other)}
    best = max(rewards, key=rewards.__getitem__)  # of equal ones the simple one
    log.info("rewards on the whole reward split: %s", ", ".join(f"{name} {x:.2f}" for name, x in rewards.items()))
    return Final(other if best == "refitted in sequence" else network, best, rewards)
