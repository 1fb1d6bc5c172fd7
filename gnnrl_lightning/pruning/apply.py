"""From channel importance to a plan, and from a plan to the smaller network."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError, require_fraction
from gnnrl_lightning.core.inputs import Inputs, changed, described, description
from gnnrl_lightning.core.networks import check_model, unwrapped
from gnnrl_lightning.pruning.channels import magnitude, most_important
from gnnrl_lightning.pruning.plan import GroupPlan, PruningPlan
from gnnrl_lightning.pruning.verify import verified
from gnnrl_lightning.topology import Topology, trace
from gnnrl_lightning.topology.whole import matching

Scores = Callable[[nn.Module, Topology], list[Tensor]]
"""Scores the channels of each group, one tensor [width] a group; higher is more important."""


def apply_plan(model: nn.Module, plan: PruningPlan, example: Inputs | None = None) -> nn.Module:
    """Returns the smaller network of a plan, after a check that it computes what the masked original computes.

    It is of the model's own class where that is right with fewer channels, else the rewritten graph (`fx.GraphModule`):
    `is_rewritten` tells.

    Args:
        model: The network that the plan was made for; unchanged.
        plan: Which channels stay.
        example: A batch of its inputs, for a network that takes neither noise nor zeros, e.g. their logarithm; None:
            zeros of the plan's shape.

    Raises:
        UserError: If the plan is for another network, or the result would be another function, or the network's
            outputs are not finite, so that nothing can be compared.
    """
    if not isinstance(plan, PruningPlan):
        raise UserError(f"plan is a {type(plan).__name__}; the order is apply_plan(model, plan).")
    check_model(model)
    model = unwrapped(model)
    topology, kept = located(model, plan, example)
    return verified(model, topology, kept)


def uniform_plan(
    topology: Topology, model: nn.Module, keep: float = 0.5, importance: str | Scores = "l1"
) -> PruningPlan:
    """A plan that keeps the same fraction of every group.

    Args:
        topology: The network's groups.
        model: The network, for the importance of its channels.
        keep: Fraction of channels that stays, in (0, 1].
        importance: `l1` or `l2` for the filters' norm, or what scores the channels of each group.

    Raises:
        UserError: If an argument is out of range.
    """
    if not isinstance(topology, Topology):
        raise UserError(f"topology is a {type(topology).__name__}; the order is uniform_plan(topology, model).")
    check_model(model)
    model = unwrapped(model)
    require_fraction("keep", keep)
    if isinstance(importance, str):
        if importance not in ("l1", "l2"):
            raise UserError(f"importance={importance} must be l1 or l2, or a function that scores the channels.")
        importance = partial(magnitude, p=int(importance[1]))
    widths = torch.tensor(
        [min(group.widths(), key=lambda width: abs(width - keep * group.width)) for group in topology.groups]
    )
    return make_plan(topology, most_important(importance(model, topology), widths))


def plan(topology: Topology, widths: Mapping[str, int] | Sequence[int] | Tensor) -> PruningPlan:
    """A plan with these widths, of each group's channels those with the largest l1 norm.

    Args:
        topology: The network's groups.
        widths: Channels that stay: one number a group in their order, or by the group's name, where all others stay
            whole.

    Raises:
        UserError: If a width is not one that its group can have.
    """
    names = [group.name for group in topology.groups]
    if isinstance(widths, Mapping):
        if unknown := [name for name in widths if name not in names]:
            raise UserError(f"there is no group {', '.join(map(str, unknown))}; the groups are {', '.join(names)}.")
        chosen = [widths.get(group.name, group.width) for group in topology.groups]
    else:
        if not isinstance(widths, Tensor | Sequence) or isinstance(widths, str):
            raise UserError(f"widths={widths!r} must be one number a group, or a mapping of groups to numbers.")
        chosen = widths.tolist() if isinstance(widths, Tensor) else list(widths)
    if len(chosen) != len(names):
        raise UserError(f"{len(chosen)} widths are given for {len(names)} groups: {', '.join(names)}.")
    for group, width in zip(topology.groups, chosen, strict=True):
        if type(width) is not int or width not in group.widths():
            step = f" in steps of {group.divisor}" if group.divisor > 1 else ""
            raise UserError(
                f"{group.name} cannot keep {width!r} channels; it keeps {group.widths()[0]} to {group.width}{step}."
            )
    return make_plan(
        topology, most_important(magnitude(topology.program.modules[""], topology, p=1), torch.tensor(chosen))
    )


def make_plan(topology: Topology, kept: Sequence[Sequence[int]]) -> PruningPlan:
    """The plan that keeps these channels of each group."""
    groups = tuple(
        GroupPlan(group.name, group.width, tuple(channels))
        for group, channels in zip(topology.groups, kept, strict=True)
    )
    # Names and not the patterns that match them: those of a file could take for ever.
    excluded = tuple(matching(topology.program.shapes, topology.exclude))
    return PruningPlan(groups, description(topology.program.example), excluded, topology.keep_ends, topology.whole)


def planned_widths(topology: Topology, plan: PruningPlan) -> Tensor:
    """Channels that each group keeps by a plan, [G]; those that it does not name stay whole."""
    return widths_among([group.name for group in plan.groups], torch.tensor(plan.widths), topology)


def widths_among(names: Sequence[str], widths: Tensor, topology: Topology) -> Tensor:
    """Widths [..., N] of named groups among all groups [..., G] of a network; the others are whole."""
    place = {group.name: index for index, group in enumerate(topology.groups)}
    result = topology.full_widths().expand(*widths.shape[:-1], -1).clone()
    result[..., [place[name] for name in names]] = widths
    return result


def located(model: nn.Module, plan: PruningPlan, example: Inputs | None = None) -> tuple[Topology, list[Sequence[int]]]:
    """The network's topology and what the plan keeps of each of its groups."""
    first = next(model.parameters())

    def like_weights(x: Tensor) -> Tensor:
        return x.to(first) if x.is_floating_point() else x.to(first.device)

    example = changed(described(plan.input_shape) if example is None else example, like_weights)
    exclude = [f"^{re.escape(name)}$" for name in plan.exclude]
    topology = trace(model, example, exclude=exclude, keep_ends=plan.keep_ends)
    if plan.whole:
        names = [group.name for group in topology.groups]
        topology = topology.without([names.index(name) for name in plan.whole if name in names], "whole in the plan")
    planned = {group.name: group for group in plan.groups}
    mine = {group.name: group.width for group in topology.groups}
    wrong = [name for name, group in planned.items() if mine.get(name) != group.width]
    if wrong or len(mine) > len(planned):
        if wrong:
            found = f"has {mine[wrong[0]]}" if wrong[0] in mine else "does not exist"
            said = f"group {wrong[0]} has {planned[wrong[0]].width} channels in the plan and {found}"
        else:
            said = f"it names {len(planned)} groups of channels, not {next(iter(mine.keys() - planned))} and others"
        raise UserError(f"the plan is for another network: {said} in {type(model).__name__}.")
    return topology, [planned[group.name].kept for group in topology.groups]
