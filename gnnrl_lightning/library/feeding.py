"""What a caller gives as data, read into memory: inputs and, where there are any, targets."""

import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.inputs import Inputs, count, tensors_in
from gnnrl_lightning.core.samples import HeldImages, HeldInputs, Samples

log = logging.getLogger(__name__)

_WANTED = "a DataLoader of (inputs, targets) or of inputs alone, a tensor, or a tuple (inputs, targets) of tensors"


def held(model: nn.Module, data: Any, most: int | None, name: str = "data") -> tuple[Samples, Tensor | None]:
    """Reads so many samples.

    Args:
        model: The network that takes them.
        data: A DataLoader, or anything that gives batches; or all of them as one batch. A batch is `(inputs, targets)`,
            `(inputs,)`, or inputs alone: a tensor, or a dict of keyword arguments. Of a network with several inputs
            `inputs` is a tuple or dict of them.
        most: How many at most; None: all.
        name: What the caller calls them.

    Returns:
        The inputs, and the targets if they are tensors; None where there are none.

    Raises:
        UserError: If it is none of these.
    """
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], HeldImages | HeldInputs):
        samples, labels = data
        return samples.first(most), labels[:most]
    if isinstance(data, list) and [type(each) for each in data] == [Tensor, Tensor] and data[0].dim() != data[1].dim():
        data = tuple(data)  # a batch as loaders make them, and not two of inputs alone
    first = data[0] if isinstance(data, tuple) and data else None
    tensors = isinstance(first, list) and all(isinstance(each, Tensor) for each in first)
    whole = isinstance(data, Tensor | Mapping) or isinstance(first, Tensor | Mapping | tuple) or tensors
    if not whole and (isinstance(data, str | nn.Module) or not isinstance(data, Iterable)):
        raise UserError(f"{name} is {_a(data)}; it must be {_WANTED}.")
    parts: list[tuple[Inputs, Any]] = []
    total = 0
    for batch in [data] if whole else data:
        parts.append(_parted(model, batch, name))
        total += count(parts[-1][0])
        if most is not None and total >= most:
            break
    if not total:
        raise UserError(f"{name} gives no batch; it must be {_WANTED}.")
    samples, labels = _joined([inputs for inputs, _ in parts], name), _targets([target for _, target in parts])
    if labels is not None and len(labels) != len(samples):
        log.warning("%s has %d inputs and %d targets, which are not used", name, len(samples), len(labels))
        labels = None
    if labels is not None and most is not None and total >= most and _sorted(labels[:most]):
        log.warning("%s comes class by class, and only %d samples of it are read; shuffle it", name, most)
    return samples.first(most), labels if labels is None else labels[:most]


def _sorted(labels: Tensor) -> bool:
    """Whether classes come one after the other."""
    classes = labels.dim() == 1 and not labels.is_floating_point() and len(labels) > 1
    return classes and bool((labels.diff() >= 0).all())


def _targets(parts: list[Any]) -> Tensor | None:
    """All targets as one tensor; None where they are none, or differ in shape as those of a detector do."""
    if not all(isinstance(each, Tensor) and each.dim() and each.shape[1:] == parts[0].shape[1:] for each in parts):
        return None
    return torch.cat([each.detach().cpu() for each in parts])


def _parted(model: nn.Module, batch: Any, name: str) -> tuple[Inputs, Any]:
    inputs, target = batch, None
    if isinstance(batch, tuple | list):
        if len(batch) not in (1, 2):
            raise UserError(
                f"a batch of {name} has {len(batch)} parts; it must be (inputs, targets), or (inputs,) alone, with a "
                f"tuple of inputs for a network that takes several."
            )
        inputs, target = batch[0], batch[1] if len(batch) == 2 else None
    if isinstance(inputs, list):
        inputs = tuple(inputs)
    if isinstance(inputs, Mapping):
        inputs = _arguments(model, inputs, name)
    if not any(x.dim() for x in tensors_in(inputs)):
        arrays = any(type(leaf).__module__ == "numpy" for leaf in pytree.tree_leaves(inputs))
        hint = "; convert arrays with torch.from_numpy" if arrays else ""
        raise UserError(f"the inputs of {name} are {_a(inputs)}; they must be tensors [N, ...]{hint}.")
    return inputs, target


def _arguments(model: nn.Module, inputs: Mapping[str, Any], name: str) -> Inputs:
    """Keyword arguments, or the one dict that a network takes."""
    parameters = inspect.signature(model.forward).parameters
    several = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if several or inputs.keys() <= parameters.keys():
        return dict(inputs)
    wanted = [key for key, each in parameters.items() if each.default is each.empty]
    if len(wanted) == 1 and not inputs.keys() & {"label", "labels", "target", "targets"}:
        return (dict(inputs),)
    raise UserError(
        f"batches of {name} are dicts with {', '.join(inputs)}, but {type(model).__name__} takes "
        f"{', '.join(parameters)}; give batches (inputs, targets)."
    )


def _joined(parts: list[Inputs], name: str) -> HeldInputs:
    """One batch of all."""
    parts = [_in_order_of(parts[0], part) for part in parts]
    flat, structures = zip(*(pytree.tree_flatten(part) for part in parts), strict=True)
    if any(structure != structures[0] for structure in structures):
        raise UserError(f"the batches of {name} differ in structure: one has other parts than the first.")
    counts = [count(part) for part in parts]
    joined, shared = [], []
    try:
        for leaves in zip(*flat, strict=True):
            if not isinstance(leaves[0], Tensor):
                joined.append(leaves[0])
                continue
            # What has as many rows as every batch has samples is taken to be theirs, if it is the same in all or not.
            shared.append(any(not leaf.dim() or len(leaf) != n for leaf, n in zip(leaves, counts, strict=True)))
            tensors = [leaf.detach().cpu() for leaf in leaves]
            joined.append(tensors[0].clone() if shared[-1] else torch.cat(tensors))
    except RuntimeError as error:
        raise UserError(f"the batches of {name} cannot be held as one: {str(error).splitlines()[0]}.") from error
    return HeldInputs(pytree.tree_unflatten(joined, structures[0]), tuple(shared))


def _in_order_of(first: Inputs, part: Inputs) -> Inputs:
    """A dict with its keys as the first batch has them."""
    if isinstance(first, Mapping) and isinstance(part, Mapping) and first.keys() == part.keys():
        return {key: part[key] for key in first}
    return part


def _a(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__name__}".replace("builtins.", "")
