"""Two networks compared: on what, with which weights, and how far apart they are."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.core.copies import copied
from gnnrl_lightning.core.inputs import Inputs, call, changed
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.program import Program

RELATIVE_TOLERANCE = 1e-4
_SMALL = 0.1
"""Scales and shifts that are all below this hide what they are multiplied with."""


def probes(model: nn.Module, topology: Topology) -> Iterator[nn.Module]:
    """Networks to check with, the first that hides least: in a branch next to zero no fault can be seen.

    Branches may begin at zero (Goyal et al. 2017) or nearly so (layer scale, Touvron et al. 2021): scales and shifts
    near zero are drawn anew. Where nothing is normalised signals fade from layer to layer: weights are enlarged to what
    keeps a signal's size (He et al. 2015).
    """
    operations = {Program.operation(node) for node in topology.program.graph.nodes if node.op == "call_function"}
    if not any(name.endswith("_norm") for name in operations):
        yield _redrawn(model, least=1.0)
    yield _redrawn(model, least=1e-4)
    yield model


def _redrawn(model: nn.Module, least: float) -> nn.Module:
    """A copy without scales near zero, and whose weights have at least this part of the size that keeps a signal's."""
    generator = torch.Generator().manual_seed(0)
    drawn: dict[int, object] = {id(t): t for t in (*model.parameters(), *model.buffers())}  # unless changed: shared
    for value in model.parameters():
        new = torch.empty(value.shape)
        if value.numel() == max(value.shape, default=1):
            if not value.detach().abs().max() <= _SMALL:  # nor if it is not finite, which the check will say
                continue
            new.uniform_(0.5, 1.5, generator=generator)
        else:
            size, wanted = float(value.detach().norm()) / math.sqrt(value.numel()), math.sqrt(2 / value[0].numel())
            if not size < least * wanted:
                continue
            if size:
                new.copy_(value.detach()).mul_(wanted / size)
            else:
                new.normal_(0, wanted, generator=generator)
        drawn[id(value)] = nn.Parameter(new.to(value), value.requires_grad)
    return copied(model, drawn)


def uneven(topology: Topology) -> list[list[int]]:
    """Channels to keep in a trial: a quarter or three quarters of each group go, by turns and from its near end.

    Where two halves keep equally many, a chunk would be right by chance.
    """
    some = []
    for index, group in enumerate(topology.groups):
        last = 2 * int((0.25, 0.75)[index % 2] * group.width / 2)
        some.append(sorted({0, *range(group.width - last, group.width)}))
    return some


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Largest difference as a fraction of its channel's largest value; infinite where shapes differ or values are nan.

    Channels much smaller than the largest are measured at a tenth of that, which rounding does not reach.
    """
    if result.shape != reference.shape:
        return math.inf
    others = [dimension for dimension in range(reference.dim()) if dimension != 1]
    sizes = reference.abs().amax(others, keepdim=True) if others else reference.abs()
    floor = max(0.1 * float(sizes.max()), 1e-12)
    return float(((result - reference).abs() / sizes.clamp(min=floor)).nan_to_num(nan=math.inf).max())


@torch.no_grad()
def evaluated(model: nn.Module, images: Inputs, precision: torch.dtype = torch.float32) -> Any:
    """The outputs of a network, of which a copy is used up."""
    return call(copied(model).to("cpu", precision).eval(), changed(images, Tensor.clone))


def error_of(outputs: Any, reference: Any) -> float:
    """The largest relative error of all outputs; infinite where they are not equally many."""
    pairs = zip(floats(outputs), floats(reference), strict=False)
    same = len(floats(outputs)) == len(floats(reference))
    return max(relative_error(a, b) for a, b in pairs) if same else math.inf


def floats(outputs: Any) -> list[Tensor]:
    """All tensors of nested outputs, as floating point numbers."""
    return [
        leaf if leaf.is_floating_point() else leaf.float()
        for leaf in pytree.tree_leaves(outputs)
        if isinstance(leaf, Tensor)
    ]
