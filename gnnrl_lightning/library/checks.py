"""What a caller of `gl.search` gives, checked: one sentence for each mistake."""

from dataclasses import fields
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.copies import copied
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.evaluation.reward import Score
from gnnrl_lightning.settings import FinishConfig, RefitConfig, SearchSettings, check_types
from gnnrl_lightning.topology import Topology

Split = tuple[Samples, Tensor | None]
"""Inputs, and their targets if there are any."""


def copy_of(model: nn.Module) -> nn.Module:
    """A copy, which the search may change."""
    try:
        return copied(model)
    except Exception as error:  # whatever an attribute of the user's network raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{type(model).__name__} cannot be copied ({reason}); set that to None first.") from error


def settings_of(given: dict[str, Any], alongside: dict[str, Any]) -> SearchSettings:
    """The settings of a search from keyword arguments and from what comes with a chosen part."""
    names = [each.name for each in fields(SearchSettings)]
    if unknown := sorted(given.keys() - set(names)):
        raise UserError(f"search has no setting {', '.join(unknown)}; it has {', '.join(names)}.")
    whole = {name: int(x) for name, x in given.items() if isinstance(x, Integral) and not isinstance(x, bool)}
    values = alongside | given | whole
    for name, kind in (("refit", RefitConfig), ("finish", FinishConfig)):
        if name not in values:
            continue
        part = values[name]
        if isinstance(part, bool):
            values[name] = kind(enabled=part)
        else:
            if not isinstance(part, dict):
                raise UserError(
                    f"{name}={part!r} is not possible; give a mapping of settings, or {name}=False for none."
                )
            if unknown := sorted(part.keys() - {each.name for each in fields(kind)}):
                has = ", ".join(each.name for each in fields(kind))
                raise UserError(f"{name} has no setting {', '.join(unknown)}; it has {has}.")
            values[name] = kind(**part)
    settings = SearchSettings(**values)
    check_types(settings)
    settings.check()
    return settings


def check_parts(parts: dict[str, Any]) -> None:
    """Raise UserError unless agent and cost can be made and importance and recovery are objects."""
    for group, of in (("agent", "Task"), ("cost", "Topology")):
        if not callable(parts[group]) or isinstance(parts[group], nn.Module):
            raise UserError(
                f"{group} is {_short(parts[group])}; it must be a name of conf/{group}, a mapping with one, or a "
                f"function of a {of} that makes it, e.g. its class."
            )
    for group in ("importance", "recovery"):
        if not hasattr(parts[group], "images") or isinstance(parts[group], type):
            raise UserError(
                f"{group} is {parts[group]!r}; it must be a name of conf/{group}, a mapping with one, or an object."
            )


def own_cost(make: Any, topology: Topology) -> Any:
    """A cost of the user's own, which is tried on the whole network."""
    try:
        cost = make(topology)
        full = topology.full_widths()
        whole = cost(full)
        assert int(whole) > 0 and not whole.is_floating_point(), f"{whole} for the whole network"
        for shape in ((2,), (2, 3)):  # agents ask for many at a time
            many = cost(full.expand(*shape, -1))
            assert many.shape == shape and bool((many == whole).all()), f"{many} for {shape} such networks"
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"cost failed ({type(error).__name__}: {error}); it must be a function of a Topology that gives a function "
            f"of widths [..., G], whose values are integers above 0: see docs/library.md."
        ) from error
    return cost


def check_agent(agent: Any) -> None:
    """Raise UserError unless it has what a search asks an agent for."""
    missing = [name for name in ("propose", "learn", "optimizer") if not callable(getattr(agent, name, None))]
    episodes = getattr(agent, "episodes_per_iteration", None)
    if not isinstance(agent, nn.Module) or missing or type(episodes) is not int or episodes < 1:
        lacks = ", ".join(missing) or "episodes_per_iteration, a whole number of at least 1"
        what = f"lacks {lacks}" if isinstance(agent, nn.Module) else "is no nn.Module"
        raise UserError(f"the agent is a {type(agent).__name__} that {what}; see docs/adding-an-agent.md.")


def check_targets(
    training: Split, reward: Tensor | None, score: Score | None, asked: SearchSettings, parts: dict[str, Any]
) -> None:
    """Raise UserError where rewards, importance or recovery want targets or inputs that are not there."""
    if score is not None and not callable(score):
        raise UserError(f"score is a {type(score).__name__}; it must be a function of a network that gives a number.")
    if reward is None and score is None and asked.reward == "top1":
        raise UserError('there are no targets to take top-1 from; give reward="kl", or score=<function of a network>.')
    samples, targets = training
    for name, part in parts.items():
        if getattr(part, "one_input", False) and not isinstance(samples[:1], Tensor):
            raise UserError(f"{name}={type(part).__name__} wants one input tensor; give another {name}.")
        if getattr(part, "needs_labels", False):
            if targets is None:
                raise UserError(f"{name}={type(part).__name__} needs targets; give data with them, or another {name}.")
            if targets.dim() != 1 or targets.is_floating_point() or not isinstance(samples[:1], Tensor):
                raise UserError(
                    f"{name}={type(part).__name__} trains on classes [N] of one input tensor; give another {name}."
                )


def _short(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, nn.Module) else repr(value)
