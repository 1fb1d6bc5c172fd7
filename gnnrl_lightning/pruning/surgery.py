"""Surgery: the network without the channels that a plan drops. One index selection per parameter dimension."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.files import write_bytes
from gnnrl_lightning.pruning.importance import Magnitude, most_important
from gnnrl_lightning.pruning.plan import GroupPlan, PruningPlan
from gnnrl_lightning.pruning.program import cut, masked_output, tensors_of
from gnnrl_lightning.pruning.rewrite import REWRITTEN, rewrite
from gnnrl_lightning.topology import Topology, trace

TOLERANCE = 1e-4

log = logging.getLogger(__name__)

Removal = Callable[[nn.Module, Topology, Sequence[Sequence[int]]], nn.Module]
"""Gives the network without the channels that are not kept: `prune` or `rewrite`."""

Importance = Callable[[nn.Module, Topology], list[Tensor]]
"""Scores the channels of each group, one tensor [width] a group; higher is more important."""


def prune(model: nn.Module, topology: Topology, kept: Sequence[Sequence[int]]) -> nn.Module:
    """Returns a smaller copy of a network: same class, same names, fewer channels.

    Args:
        model: The network that `topology` was traced from; unchanged.
        topology: Where the channels of each group lie.
        kept: The channels that stay, one list a group.
    """
    mask = topology.keep_mask(kept)
    small: dict[int, object] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        value = cut(tensor.detach(), name, topology, mask)
        if value.data_ptr() == tensor.data_ptr():
            value = value.clone()
        small[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    # deepcopy takes what the memo holds: every other attribute is copied, each tensor arrives already pruned.
    pruned = copy.deepcopy(model, small)
    getattr(pruned, "meta", {}).pop(REWRITTEN, None)  # what is pruned now is not rewritten, even if it was before
    modules = dict(pruned.named_modules())
    for size, slots in topology.sizes:
        count = int(((slots < 0) | mask[slots]).sum())
        module = modules[size.module]
        if size.position is None:
            setattr(module, size.attribute, count)
        else:
            values = list(getattr(module, size.attribute))
            values[size.position] = count
            setattr(module, size.attribute, tuple(values))
    return pruned


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Largest difference as a fraction of the reference's largest value; infinite where the shapes differ."""
    if result.shape != reference.shape:
        return math.inf
    return float((result - reference).abs().max() / reference.abs().max().clamp(min=1e-12))


def apply_plan(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Returns the smaller network of a plan, after a check that it computes what the masked original computes.

    It is of the model's own class where that is right with fewer channels, else the rewritten graph (`fx.GraphModule`).

    Args:
        model: The network that the plan was made for; unchanged.
        plan: Which channels stay.

    Raises:
        ValueError: If the plan is for another network, or the result would be another function, or the network's
            outputs are not finite, so that nothing can be compared.
    """
    topology, kept = _locate(model, plan)
    return verified(model, topology, kept)


def verified(model: nn.Module, topology: Topology, kept: Sequence[Sequence[int]]) -> nn.Module:
    """As `apply_plan`, for channels that are already located."""
    small, reasons = _attempt(model, topology, kept)
    if small is None:
        raise ValueError(
            f"{type(model).__name__} computes something else after pruning, by surgery ({reasons[0]}) and as a "
            f"rewritten graph ({reasons[1]}); keep the layers at fault whole with exclude=[…]."
        )
    return small


def provable(model: nn.Module, topology: Topology) -> tuple[Topology, Removal]:
    """Finds out how a network's channels are removed, and locks the groups for which no way is right.

    Half of each group is removed and the result checked as in `apply_plan`.

    Returns:
        The topology, without those groups, and `prune` where surgery is enough, else `rewrite`.

    Raises:
        ValueError: If no group is left.
    """

    def half(groups: Sequence[int]) -> list[range]:
        widths = [group.width for group in topology.groups]
        return [range(-(-width // 2) if i in groups else width) for i, width in enumerate(widths)]

    def at_fault(groups: Sequence[int]) -> list[int]:
        if _attempt(model, topology, half(groups))[0] is not None:
            return []
        middle = len(groups) // 2
        return [*at_fault(groups[:middle]), *at_fault(groups[middle:])] if middle else list(groups)

    everything = range(len(topology.groups))
    small, reasons = _attempt(model, topology, half(everything))
    if small is None:
        wrong = at_fault(everything)
        for group in wrong:
            log.warning("%s stays whole: %s", topology.groups[group].name, reasons[1])
        topology = topology.without(wrong, f"neither surgery nor a rewritten graph is right ({reasons[1]})")
        small = verified(model, topology, half(range(len(topology.groups))))
    return topology, rewrite if REWRITTEN in getattr(small, "meta", {}) else prune


def _attempt(model: nn.Module, topology: Topology, kept: Sequence[Sequence[int]]) -> tuple[nn.Module | None, list[str]]:
    """The network by the first way that is right, and why the ways before it were not."""
    shape = (topology.program.batch, *topology.program.example_shape[1:])
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # Off the GPU and in single precision: TF32 and half precision differ by more than the tolerance and mean nothing.
    tensors = {name: value.detach().cpu() for name, value in tensors_of(model).items()}
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    reference = _join(masked_output(tensors, topology, topology.keep_mask(kept), images))
    if not reference.isfinite().all():
        raise ValueError(
            f"{type(model).__name__} cannot be checked after pruning: the network's own outputs are not finite; "
            f"load other weights."
        )
    reasons: list[str] = []
    for way in (prune, rewrite):
        try:
            small = way(model, topology, kept)
            error = relative_error(_evaluate(copy.deepcopy(small).cpu().float(), images), reference)
            if error <= TOLERANCE:
                return small, reasons
            reasons.append(f"relative error {error:.1e}")
        except Exception as failure:  # whatever the user's forward raises once its channels are fewer
            reasons.append(str(failure).strip().partition("\n")[0] or type(failure).__name__)
    return None, reasons


def uniform_plan(
    topology: Topology, model: nn.Module, keep: float = 0.5, importance: str | Importance = "l1"
) -> PruningPlan:
    """A plan that keeps the same fraction of every group.

    Args:
        topology: The network's groups.
        model: The network, for the importance of its channels.
        keep: Fraction of channels that stays, in (0, 1].
        importance: `l1` or `l2` for the filters' norm, or what scores the channels of each group.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must be in (0, 1].")
    if isinstance(importance, str):
        if importance not in ("l1", "l2"):
            raise ValueError(f"importance={importance} must be l1 or l2, or an object such as Magnitude(1).")
        importance = Magnitude(int(importance[1]))
    widths = torch.tensor(
        [min(group.widths(), key=lambda width: abs(width - keep * group.width)) for group in topology.groups]
    )
    return make_plan(topology, most_important(importance(model, topology), widths))


def make_plan(topology: Topology, kept: Sequence[Sequence[int]]) -> PruningPlan:
    """The plan that keeps these channels of each group."""
    groups = tuple(
        GroupPlan(group.name, group.width, tuple(channels))
        for group, channels in zip(topology.groups, kept, strict=True)
    )
    return PruningPlan(groups, tuple(topology.program.example_shape), topology.exclude)


def save_pruned(folder: Path, small: nn.Module, plan: PruningPlan) -> None:
    """Writes `pruned.safetensors` and `plan.json`; `load_pruned` reads them back."""
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in small.state_dict().items()}
    write_bytes(folder / "pruned.safetensors", save(state))
    replace(plan, rewritten=REWRITTEN in getattr(small, "meta", {})).save(folder / "plan.json")


def load_pruned(folder: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Builds the pruned network of a run's folder, in eval mode.

    Args:
        folder: With `plan.json` and `pruned.safetensors`.
        model: The unpruned network (any weights), where the plan does not say how to build it.

    Raises:
        ValueError: If a file is missing or damaged, or does not fit the network.
    """
    folder = Path(folder)
    plan = PruningPlan.load(folder / "plan.json")
    path = folder / "pruned.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; the run did not reach its end.")
    if model is None:
        model = _build(plan, folder / "plan.json")
    small = (rewrite if plan.rewritten else prune)(model, *_locate(model, plan))
    try:
        small.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{path} does not hold the weights of its plan: {reason}") from error
    return small.eval()


def _build(plan: PruningPlan, path: Path) -> nn.Module:
    """The unpruned network of a plan, with any weights."""
    # Imported here: it takes all of Lightning and torchvision, which the rest of the package does without.
    from gnnrl_lightning.models.factory import ModelSpec, create_model

    if plan.model is None:
        raise ValueError(f"{path} does not say how to build its network; pass it as model=….")
    try:
        spec = ModelSpec.from_config(plan.model["spec"])
        num_classes, image_size = int(plan.model["num_classes"]), int(plan.model["image_size"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say how to build its network ({error}); pass it as model=….") from error
    return create_model(spec, num_classes, image_size, weights=None)


def _locate(model: nn.Module, plan: PruningPlan) -> tuple[Topology, list[Sequence[int]]]:
    """The network's topology and what the plan keeps of each of its groups."""
    example = torch.zeros(plan.input_shape).to(next(model.parameters()))
    topology = trace(model, example, exclude=plan.exclude)
    planned = {group.name: group for group in plan.groups}
    known = {group.name: group.width for group in topology.groups}
    for group in plan.groups:
        if known.get(group.name) != group.width:
            found = f"has {known[group.name]}" if group.name in known else "does not exist"
            raise ValueError(
                f"the plan is for another network: group {group.name} has {group.width} channels in the plan "
                f"and {found} in {type(model).__name__}."
            )
    return topology, [planned[g.name].kept if g.name in planned else range(g.width) for g in topology.groups]


@torch.no_grad()
def _evaluate(model: nn.Module, images: Tensor) -> Tensor:
    """The output of a network that is not needed afterwards."""
    return _join(model.eval()(images.clone()))


def _join(outputs: Any) -> Tensor:
    """All outputs in one vector."""
    return torch.cat([leaf.flatten().float() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)])
