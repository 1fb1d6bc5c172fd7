"""Channels that are switched off in a network that goes on training: parts of its weights are set to zero."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gnnrl_lightning.importance.gates import read_slots
from gnnrl_lightning.topology import Topology


@torch.no_grad()
def zero_filters(model: nn.Module, topology: Topology, mask: Tensor) -> None:
    """Sets the filters that write channels to zero, in place.

    Args:
        model: The network.
        topology: Its channel groups.
        mask: Which slots stay as they are, [slots].
    """
    for weight, name, dimension, slots in _dimensions(model, topology):
        if weight.dim() >= 2 and topology.labels.readers.get(name) != dimension:
            _zero(weight, dimension, (slots < 0) | mask[slots])


@torch.no_grad()
def zero_reads(model: nn.Module, topology: Topology, mask: Tensor) -> None:
    """Sets the weights that read channels to zero, in place: the network computes what it does without these channels.

    A product of queries and keys has no weight: of its channels all that writes them is zero as well. What normalises
    or reduces over channels still sees them.

    Args:
        model: The network.
        topology: Its channel groups.
        mask: Which slots stay as they are, [slots].
    """
    weighed = mask | ~_multiplied(topology)
    for weight, name, dimension, slots in _dimensions(model, topology):
        stays = mask if topology.labels.readers.get(name) == dimension else weighed
        _zero(weight, dimension, (slots < 0) | stays[slots])


def _multiplied(topology: Topology) -> Tensor:
    """Which slots are read by a product of activations, [slots]."""
    program = topology.program
    found = torch.zeros(len(topology.group_of_slot), dtype=torch.bool)
    slots = read_slots(topology)
    for node in program.graph.nodes:
        if node.name in slots and not any(source.name in program.state for source in node.all_input_nodes):
            found[slots[node.name][slots[node.name] >= 0]] = True
    return found


def _dimensions(model: nn.Module, topology: Topology) -> Iterator[tuple[Tensor, str, int, Tensor]]:
    """Every dimension of a parameter that channels lie along: the parameter, its name, the dimension, their slots."""
    parameters = dict(model.named_parameters())
    for (name, dimension), slots in topology.slots.items():
        if name in parameters:
            yield parameters[name], name, dimension, slots


def _zero(weight: Tensor, dimension: int, stays: Tensor) -> None:
    """Zeroes the positions of a weight that do not stay, [positions] or those of each block of its rows."""
    if stays.all():
        return
    if stays.dim() == 2:  # a grouped convolution: each block of its rows reads channels of its own
        stays = stays.repeat_interleave(len(weight) // len(stays), 0)
        weight.mul_(stays.view(*stays.shape, *[1] * (weight.dim() - 2)).to(weight))
    else:
        weight.mul_(stays.view([-1 if d == dimension else 1 for d in range(weight.dim())]).to(weight))
