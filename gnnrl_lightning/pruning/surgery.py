"""Surgery: the network without the channels that a plan drops. One index selection per parameter dimension."""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.files import write_bytes
from gnnrl_lightning.models.factory import ModelSpec, create_model
from gnnrl_lightning.pruning.importance import Magnitude, most_important
from gnnrl_lightning.pruning.plan import GroupPlan, PruningPlan
from gnnrl_lightning.topology import Topology, trace

TOLERANCE = 1e-4

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
        value = tensor.detach()
        for dimension in range(value.dim()):
            slots = topology.slots.get((name, dimension))
            if slots is not None:
                stays = (slots < 0) | mask[slots]
                if not stays.all():
                    value = value.index_select(dimension, stays.nonzero().flatten().to(value.device))
        if value.data_ptr() == tensor.data_ptr():
            value = value.clone()
        small[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    # deepcopy takes what the memo holds: every other attribute is copied, each tensor arrives already pruned.
    pruned = copy.deepcopy(model, small)
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


def masked(model: nn.Module, topology: Topology, kept: Sequence[Sequence[int]]) -> nn.Module:
    """Returns a full-size copy in which no layer reads the removed channels: what the pruned network must compute."""
    mask = topology.keep_mask(kept)
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters())
    with torch.no_grad():
        for name, dimension in topology.labels.readers.items():
            slots = topology.slots[name, dimension]
            stays = (slots < 0) | mask[slots]
            shape = [1] * parameters[name].dim()
            shape[dimension] = -1
            parameters[name].mul_(stays.view(shape).to(parameters[name]))
    return twin


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Largest difference as a fraction of the reference's largest value; infinite where the shapes differ."""
    if result.shape != reference.shape:
        return math.inf
    return float((result - reference).abs().max() / reference.abs().max().clamp(min=1e-12))


def apply_plan(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Returns the smaller network of a plan, after a check that it computes what the masked original computes.

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
    """As `prune`, with the check of `apply_plan`."""
    pruned = prune(model, topology, kept)
    images = torch.randn(topology.program.example_shape, generator=torch.Generator().manual_seed(0))
    # Off the GPU and in single precision: TF32 and half precision differ by more than the tolerance and mean nothing.
    reference = _evaluate(masked(model, topology, kept).cpu().float(), images)
    if not reference.isfinite().all():
        raise ValueError(
            f"{type(model).__name__} cannot be checked after pruning: the network's own outputs are not finite; "
            f"load other weights."
        )
    try:
        error = relative_error(_evaluate(copy.deepcopy(pruned).cpu().float(), images), reference)
        wrong = f"relative error {error:.1e}" if not error <= TOLERANCE else ""
    except Exception as failure:  # whatever the user's forward raises once its channels are fewer
        wrong = str(failure).strip().partition("\n")[0] or type(failure).__name__
    if wrong:
        raise ValueError(
            f"{type(model).__name__} computes something else after pruning ({wrong}): its forward uses a number of "
            f"channels that the trace does not show; keep those layers whole with exclude=[…]."
        )
    return pruned


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
    plan.save(folder / "plan.json")


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
    small = prune(model, *_locate(model, plan))
    try:
        small.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{path} does not hold the weights of its plan: {reason}") from error
    return small.eval()


def _build(plan: PruningPlan, path: Path) -> nn.Module:
    """The unpruned network of a plan, with any weights."""
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
    """The output of a network that is not needed afterwards; several outputs are joined."""
    leaves = [leaf for leaf in pytree.tree_leaves(model.eval()(images)) if isinstance(leaf, Tensor)]
    return torch.cat([leaf.flatten().float() for leaf in leaves])
