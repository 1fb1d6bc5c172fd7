"""No pruned network is handed out before it was compared with the original without the removed channels."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.copies import copied
from gnnrl_lightning.core.inputs import Inputs, call, changed, drawn, repeated
from gnnrl_lightning.pruning.compare import RELATIVE_TOLERANCE, error_of, evaluated, floats, probes, uneven
from gnnrl_lightning.pruning.program import masked_output, tensors_of
from gnnrl_lightning.pruning.rewrite import is_rewritten, rewrite
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.topology import Topology


class Removal(Protocol):
    """Gives the network without the channels that are not kept: `prune` or `rewrite`."""

    def __call__(
        self,
        model: nn.Module,
        topology: Topology,
        kept: Sequence[Sequence[int]],
        values: Mapping[str, Tensor] | None = None,
    ) -> nn.Module:
        """See `prune`."""


log = logging.getLogger(__name__)


def verified(
    model: nn.Module, topology: Topology, kept: Sequence[Sequence[int]], values: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """As `apply_plan`, for channels that are already located; `values` as in `prune`."""
    small, reasons = _attempt(model, topology, kept, values)
    if small is None:
        raise UserError(
            f"{type(model).__name__} computes something else after pruning, by surgery ({reasons[0]}) and as a "
            f"rewritten graph ({reasons[1]}); keep the layers at fault whole with exclude=[…]."
        )
    return small


def provable(model: nn.Module, topology: Topology) -> tuple[Topology, Removal]:
    """Finds out how a network's channels are removed, and locks the groups for which no way is right.

    A part of each group is removed, see `uneven`, and the result is checked as in `apply_plan`.

    Returns:
        The topology, without those groups, and `prune` where surgery is enough, else `rewrite`.

    Raises:
        UserError: If no group is left, or these groups only go wrong together.
    """
    some = uneven(topology)

    def of(groups: Sequence[int]) -> list[Sequence[int]]:
        return [some[i] if i in groups else range(group.width) for i, group in enumerate(topology.groups)]

    def at_fault(groups: Sequence[int]) -> list[int]:
        if _attempt(model, topology, of(groups))[0] is not None:
            return []
        middle = len(groups) // 2
        return [*at_fault(groups[:middle]), *at_fault(groups[middle:])] if middle else list(groups)

    everything = range(len(topology.groups))
    small, reasons = _attempt(model, topology, some)
    if small is None:
        wrong = at_fault(everything)
        for index in wrong:
            log.warning("%s stays whole: %s", topology.groups[index].name, reasons[1])
        topology = topology.without(wrong, f"neither surgery nor a rewritten graph is right ({reasons[1]})")
        if not topology.groups:
            raise UserError(f"nothing in {type(model).__name__} can be pruned: {reasons[1]}.")
        small = verified(model, topology, [channels for i, channels in enumerate(some) if i not in wrong])
    return topology, rewrite if is_rewritten(small) else prune


def _attempt(
    model: nn.Module, topology: Topology, kept: Sequence[Sequence[int]], values: Mapping[str, Tensor] | None = None
) -> tuple[nn.Module | None, list[str]]:
    """The network by the first way that is right, and why the ways before it were not."""
    removed, everything = topology.keep_mask(kept), torch.ones_like(topology.group_of_slot, dtype=torch.bool)
    found = _reference(model, topology, removed)
    if isinstance(found, str):
        return None, [found] * 2
    probe, tensors, images, reference = found
    reasons: list[str] = []
    for way in (prune, rewrite):
        try:
            small = way(probe, topology, kept)
            error = _difference(small, reference, tensors, topology, removed, images)
            if way is rewrite:  # of the trace: so that must be the model
                whole = masked_output(tensors, topology, everything, images)
                error = max(error, _difference(probe, whole, tensors, topology, everything, images))
            # What only training computes, the trace does not show; the rewritten network is without it.
            trains = way is rewrite or _trains(small, images)
            if error <= RELATIVE_TOLERANCE and (trains or not (topology.program.unused or _trains(probe, images))):
                return small if probe is model and not values else way(model, topology, kept, values), reasons
            reasons.append("only eval() works" if error <= RELATIVE_TOLERANCE else f"relative error {error:.1e}")
        except Exception as failure:  # whatever the user's forward raises once its channels are fewer
            reasons.append(_first_line(failure))
    return None, reasons


def _reference(
    model: nn.Module, topology: Topology, removed: Tensor
) -> tuple[nn.Module, dict[str, Tensor], Inputs, Any] | str:
    """A network to check with, its tensors, images, and what it gives without the channels; or why there is none.

    The images are noise, which shows most; where the network cannot take it, as where it takes a logarithm, they are
    those that it was traced with. They are more than the trace had: what that took for a constant shows.
    """
    example, more = topology.program.example, topology.program.batch + 1
    raised = ""
    for images in (drawn(example, more, torch.Generator().manual_seed(0)), _on_cpu(repeated(example, more))):
        for probe in probes(model, topology):
            # Off the GPU and in single precision: TF32 and half precision differ by more than the tolerance.
            tensors = {name: value.detach().cpu() for name, value in tensors_of(probe).items()}
            tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
            try:
                reference = masked_output(tensors, topology, removed, images)
            except Exception as failure:  # whatever an operation raises at another number of images or channels
                raised = raised or _first_line(failure)
                break
            if all(output.isfinite().all() for output in floats(reference)):
                return probe, tensors, images, reference
    if raised:
        return raised
    raise UserError(
        f"{type(model).__name__} cannot be checked after pruning: the network's own outputs are not finite; load other "
        f"weights, or give an example of inputs that it takes."
    )


def _on_cpu(images: Inputs) -> Inputs:
    return changed(images, lambda x: x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu())


def _first_line(failure: Exception) -> str:
    return str(failure).strip().partition("\n")[0] or type(failure).__name__


def _trains(model: nn.Module, images: Inputs) -> bool:
    """Whether `forward` runs in train mode, where it may have branches that the trace does not show."""
    try:
        with torch.no_grad():
            call(copied(model).cpu().float().train(), changed(images, Tensor.clone))
    except Exception:  # whatever the user's forward raises
        return False
    return True


def _difference(
    network: nn.Module,
    expected: Any,
    tensors: Mapping[str, Tensor],
    topology: Topology,
    mask: Tensor,
    images: Inputs,
) -> float:
    """How far a network's outputs are from what is expected, those of the original with this mask.

    Deep networks amplify what is lost in rounding: where that might be all, double precision says whether it is.
    """
    error = error_of(evaluated(network, images), expected)
    if error <= RELATIVE_TOLERANCE:
        return error
    exact, fed = (changed(each, lambda x: x.double() if x.is_floating_point() else x) for each in ({**tensors}, images))
    try:
        return error_of(evaluated(network, fed, torch.float64), masked_output(exact, topology, mask, fed))
    except Exception:  # the network asks for single precision somewhere
        return error
