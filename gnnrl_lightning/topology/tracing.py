"""From a network to its topology."""

from collections.abc import Sequence

from torch import nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.inputs import Inputs
from gnnrl_lightning.core.networks import check_module, unwrapped
from gnnrl_lightning.topology.attributes import note_attributes
from gnnrl_lightning.topology.rules import propagate
from gnnrl_lightning.topology.shuffle import fuse_shuffles, name_indices
from gnnrl_lightning.topology.topology import Topology
from gnnrl_lightning.topology.trace import read_program
from gnnrl_lightning.topology.whole import exclude_layers, keep_both_ends


def trace(
    model: nn.Module,
    example: Inputs,
    *,
    divisor: int = 1,
    min_keep: float = 0.0,
    exclude: Sequence[str] = (),
    keep_ends: bool = False,
) -> Topology:
    """Reads a network's topology: which channels can be removed, which only together, and what each costs.

    The model is not changed, and of its weights no value is read but those of integers, which are indices.

    Args:
        model: Any network that `torch.export` reads.
        example: A batch of its inputs: a tensor [N, ...], a tuple of positional or a dict of keyword arguments, nested
            as `forward` takes them. Of floating point numbers only shape and type matter.
        divisor: Keep multiples of this many channels, 8 for tensor cores.
        min_keep: Fraction of its channels that each group keeps at least.
        exclude: Regular expressions; groups with a parameter whose name matches stay whole.
        keep_ends: Keep all that the first layers write and all that the last layers read.

    Raises:
        UserError: If an option is out of range, the network cannot be traced, or nothing in it can be pruned.
    """
    if divisor < 1:
        raise UserError(f"divisor={divisor} must be at least 1; 1 keeps any number of channels.")
    if not 0 <= min_keep <= 1:
        raise UserError(f"min_keep={min_keep} must be in [0, 1], the fraction of its channels that a group keeps.")
    if isinstance(exclude, str):
        raise UserError(f"exclude={exclude!r} must be a list of regular expressions, e.g. exclude=[{exclude!r}].")
    check_module(model)
    program = read_program(unwrapped(model), example)
    name_indices(program)
    fuse_shuffles(program.graph)
    labels = propagate(program)
    note_attributes(labels)
    exclude_layers(labels, exclude)
    if keep_ends:
        keep_both_ends(labels)
    topology = Topology(program, labels, divisor, min_keep, exclude, keep_ends)
    if not topology.groups:
        reasons = "; ".join(dict.fromkeys(reason for reason, _ in topology.locked))
        raise UserError(f"nothing in {type(model).__name__} can be pruned: {reasons}.")
    return topology


def traced_again(
    model: nn.Module,
    example: Inputs,
    divisor: int,
    min_keep: float,
    exclude: Sequence[str],
    keep_ends: bool,
    whole: Sequence[str],
) -> Topology:
    """The topology that was pickled: its network traced with the same options."""
    topology = trace(model, example, divisor=divisor, min_keep=min_keep, exclude=exclude, keep_ends=keep_ends)
    names = [group.name for group in topology.groups]
    indices = [names.index(name) for name in whole if name in names]
    return topology.without(indices, "whole before") if indices else topology
