"""A pruned network in files, and back: never another network than the one that was saved."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.files import write_bytes
from gnnrl_lightning.core.inputs import Inputs, described, drawn
from gnnrl_lightning.core.networks import unwrapped
from gnnrl_lightning.pruning.apply import located
from gnnrl_lightning.pruning.compare import evaluated, floats
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.rewrite import is_rewritten, rewrite
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.topology import trace

WEIGHTS = "pruned.safetensors"
_PLAN = "plan"
"""In the metadata of the weights: the digest of the plan that they belong to."""
_SCORES = 32
"""Numbers that are compared of each output."""
_TOLERANCE = 0.01
"""Relative to the largest: other processors round otherwise, another network gives other numbers altogether."""


def save_pruned(folder: Path | str, small: nn.Module, plan: PruningPlan) -> None:
    """Writes `pruned.safetensors` and `plan.json`; `load_pruned` reads them back.

    Args:
        folder: Made if it is not there.
        small: The pruned network, fine-tuned or not.
        plan: What it was pruned by.

    Raises:
        UserError: If the network is not pruned.
    """
    if not isinstance(small, nn.Module) or not isinstance(plan, PruningPlan):
        given = type(small).__name__, type(plan).__name__
        raise UserError(f"a {given[0]} and a {given[1]} are given; the order is save_pruned(folder, network, plan).")
    small = unwrapped(small)
    if _is_whole(small, plan):
        raise UserError(
            f"{type(small).__name__} has all channels that the plan removes; save what apply_plan(model, plan) gives."
        )
    write_pruned(Path(folder), small, plan)


def write_pruned(folder: Path, small: nn.Module, plan: PruningPlan) -> None:
    """As `save_pruned`, for a network that is known to be pruned by this plan."""
    plan = replace(plan, rewritten=plan.rewritten or is_rewritten(small), saved={"scores": _scores(small, plan)})
    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in small.state_dict().items()}
    weights = save(state, {_PLAN: _digest(plan)})
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS, weights)
    replace(plan, saved={"sha256": hashlib.sha256(weights).hexdigest(), **plan.saved}).save(folder / "plan.json")


def load_pruned(folder: Path | str, model: nn.Module | None = None, example: Inputs | None = None) -> nn.Module:
    """Builds the pruned network of a run's folder, in eval mode.

    Args:
        folder: With `plan.json` and `pruned.safetensors`.
        model: The unpruned network (any weights), where the plan does not say how to build it.
        example: A batch of its inputs, for a network that takes a structure which no file can describe, such as a named
            tuple, or takes no zeros.

    Raises:
        UserError: If a file is missing, damaged or changed, or they do not fit the network.
    """
    folder = Path(folder)
    plan = PruningPlan.load(folder / "plan.json")
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} does not exist; the run did not reach its end.")
    _check_files(path, plan)
    model = None if model is None else unwrapped(model)
    if model is None:
        model = _build(plan, folder / "plan.json")
    small = (rewrite if plan.rewritten else prune)(model, *located(model, plan, example))
    try:
        small.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path} does not hold the weights of its plan: {reason}") from error
    _check_scores(small, plan, path)
    return small.eval()


def _check_files(path: Path, plan: PruningPlan) -> None:
    """Raise UserError unless plan and weights are those that were written together."""
    try:
        with safe_open(path, "pt") as file:
            digest = (file.metadata() or {}).get(_PLAN)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} does not hold the weights of its plan: {error}") from error
    if digest is not None and digest != _digest(plan):
        raise UserError(f"{path} belongs to another plan.json than the one beside it; give the files of one run.")
    known = plan.saved.get("sha256")
    if known is not None and known != hashlib.sha256(path.read_bytes()).hexdigest():
        raise UserError(f"{path} was changed after it was saved; save networks with gl.save_pruned.")


def _check_scores(small: nn.Module, plan: PruningPlan, path: Path) -> None:
    """Raise UserError where the network computes something else than what was saved, as under another release."""
    wanted = plan.saved.get("scores")
    if wanted is not None and not _alike(_scores(small, plan), wanted):
        raise UserError(f"{path} gives other scores than the network that was saved: its code has changed since.")


def _alike(found: list[list[float]] | None, wanted: list[list[float]]) -> bool:
    if found is None or list(map(len, found)) != list(map(len, wanted)):
        return False
    sizes = (max(map(abs, values), default=0.0) for values in wanted)
    return all(
        abs(a - b) <= _TOLERANCE * size
        for mine, saved, size in zip(found, wanted, sizes, strict=True)
        for a, b in zip(mine, saved, strict=True)
    )


def _scores(network: nn.Module, plan: PruningPlan) -> list[list[float]] | None:
    """Some of the outputs for fixed noise, to six digits; None where the network takes no noise."""
    try:
        images = drawn(described(plan.input_shape), 2, torch.Generator().manual_seed(0))
        outputs = floats(evaluated(network, images))
    except Exception:  # whatever the network raises
        return None
    if not all(output.isfinite().all() for output in outputs):
        return None
    return [
        [float(f"{x:.6g}") for x in output.flatten()[:: -(-output.numel() // _SCORES) or 1].tolist()]
        for output in outputs
    ]


def _digest(plan: PruningPlan) -> str:
    """Of all that a plan says but the digest of the weights."""
    said = asdict(plan) | {"saved": {"scores": plan.saved.get("scores")}}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=list).encode()).hexdigest()


def _is_whole(network: nn.Module, plan: PruningPlan) -> bool:
    """Whether every group is as wide as before the plan, although it removes channels."""
    if all(len(group.kept) == group.width for group in plan.groups):
        return False
    try:
        topology = trace(network, described(plan.input_shape), keep_ends=plan.keep_ends)
    except UserError:
        return False
    widths = {group.name: group.width for group in topology.groups}
    narrower: Sequence[Any] = [group for group in plan.groups if len(group.kept) < group.width]
    return all(widths.get(group.name) == group.width for group in narrower)


def _build(plan: PruningPlan, path: Path) -> nn.Module:
    """The unpruned network of a plan, with any weights."""
    # Imported here: it takes all of Lightning and torchvision, which the rest of the package does without.
    from gnnrl_lightning.models.factory import ModelSpec, create_model

    if plan.model is None:
        raise UserError(f"{path} does not say how to build its network; pass it as model=….")
    try:
        spec = ModelSpec.from_file(plan.model["spec"])
        num_classes, image_size = int(plan.model["num_classes"]), int(plan.model["image_size"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not say how to build its network ({error}); pass it as model=….") from error
    return create_model(spec, num_classes, image_size, weights=None)
