"""A search in a few lines, for the terminal and for the page."""

from typing import Any

from gnnrl_lightning.core.numbers import fixed, millions, percent
from gnnrl_lightning.evaluation.protocol import Protocol

_WEIGHTS = {
    "cut": "cut",
    "refitted": "refitted in closed form",
    "refitted in sequence": "refitted layer after layer",
}

_MEASURABLE = 10.0
"""Errors beyond so many times the variance say no more than that."""


def summary(results: dict[str, Any]) -> list[str]:
    """What stands below the table of networks: the budget, the levels of the reward, where the weights come from."""
    lines = (budget_line(results), levels_line(results), weights_line(results), finish_line(results))
    return [line for line in lines if line is not None]


def budget_line(results: dict[str, Any]) -> str:
    """What the budget allowed and what the plan uses: "budget 0.50: 62.7 of 125.5 MMACs allowed, …"."""
    cost = results["cost_values"]
    return (
        f"budget {results['budget']:.2f}: {millions(results['allowed']['cost'])} of {millions(cost['original'])} "
        f"{results['cost_unit']} allowed, {millions(cost['used'])} used"
    )


def levels_line(results: dict[str, Any]) -> str | None:
    """What the search began with and came to: "reward: uniform −16.00 %, closed form −13.70 %, best −12.90 %".

    None for a run without such levels.
    """
    protocol, levels = Protocol.of(results), results.get("levels")
    if not levels:
        return None
    levels = levels | {"best": results["reward"]["best_seen"]}
    return "reward: " + ", ".join(f"{name.replace('_', ' ')} {protocol.text(x)}" for name, x in levels.items())


def weights_line(results: dict[str, Any]) -> str | None:
    """Where the weights of the pruned network come from, before any fine-tuning; None for a run that does not say.

    Where there was a choice, with the rewards on the whole reward split that made it.
    """
    weights = results.get("weights")
    if not weights:
        return None
    made, protocol = weights["from"], Protocol.of(results)
    rewards = {name: protocol.text(reward) for name, reward in weights["rewards"].items()}
    line = f"weights {_WEIGHTS[made]}"
    if not rewards:
        return line
    others = [
        f"{_WEIGHTS[name].removeprefix('refitted ')} {reward}" for name, reward in rewards.items() if name != made
    ]
    return f"{line} (reward {', '.join([rewards[made], *others])})"


def finish_line(results: dict[str, Any]) -> str | None:
    """What learning the activations brought: "finished: divergence from the unpruned network 0.59 to 0.27 nats, …".

    None for a run without it.
    """
    finish = results.get("finish")
    if not finish:
        return None
    first, last = finish["error"]
    if finish["divergence"] is None:
        (before, after), what = finish["scores"], "score {} to {}"
    else:
        (before, after), what = finish["divergence"], "divergence from the unpruned network {} to {} nats"
    line = (
        f"finished: {what.format(fixed(before, 3), fixed(after, 3))}, "
        f"error of the activations {_capped(first)} to {_capped(last)}"
    )
    return line if finish["taken"] else f"{line}; not taken"


def _capped(error: float) -> str:
    """Of a network that knows nothing it may be any number."""
    return percent(error) if error <= _MEASURABLE else f"over {percent(_MEASURABLE)}"
