"""What a network is called with: one tensor, or whatever nested structure of tensors its `forward` takes."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.core.checks import UserError

_MOST = 2**30
"""Numbers that an example of inputs may have."""

Inputs = Any
"""A tensor [N, ...]; a tuple or list of positional arguments; or keyword arguments by name. Arguments may be nested.

The images of a batch lie along the first dimension of every tensor; one whose first dimension is another than that of
the first tensor with any is shared by all images.
"""


def call(network: nn.Module, inputs: Inputs) -> Any:
    """Runs a network on inputs, which may be positional or keyword arguments; returns its outputs as they are."""
    args, kwargs = arguments(inputs)
    return network(*args, **kwargs)


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments."""
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs,), {}


def sorted_arguments(network: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, these in the order that `forward` has for them."""
    args, kwargs = arguments(inputs)
    order = [*arguments_by_name(network, inputs), *kwargs]
    return args, {name: kwargs[name] for name in dict.fromkeys(order) if name in kwargs}


def arguments_by_name(network: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The arguments by the names that `forward` has for them, in its order.

    Raises:
        TypeError: If `forward` does not take such arguments.
    """
    args, kwargs = arguments(inputs)
    return dict(inspect.signature(network.forward).bind(*args, **kwargs).arguments)


def tensors_in(inputs: Inputs) -> list[Tensor]:
    """All tensors, in order."""
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def count(inputs: Inputs) -> int:
    """How many images there are."""
    return next(len(x) for x in tensors_in(inputs) if x.dim())


def changed(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The same structure with other tensors."""
    return pytree.tree_map_only(Tensor, change, inputs)


def taken(inputs: Inputs, which: slice | Tensor) -> Inputs:
    """Some of the images."""
    total = count(inputs)
    return changed(inputs, lambda x: x[which] if x.dim() and len(x) == total else x)


def description(inputs: Inputs) -> Any:
    """The structure with shapes and types in place of tensors, for JSON; of one tensor of float32 only its shape."""
    if isinstance(inputs, Tensor) and inputs.dtype == torch.float32 and inputs.dim():
        return list(inputs.shape)
    if isinstance(inputs, Tensor):
        return {"dtype": str(inputs.dtype).removeprefix("torch."), "shape": list(inputs.shape)}
    if isinstance(inputs, Mapping) and all(isinstance(name, str) for name in inputs):
        return {"named": {name: description(value) for name, value in inputs.items()}}
    if isinstance(inputs, Mapping):
        return {"pairs": [[name, description(value)] for name, value in inputs.items()]}
    if isinstance(inputs, list):
        return {"list": [description(value) for value in inputs]}
    if isinstance(inputs, tuple):
        return {"listed": [description(value) for value in inputs]}
    return {"value": inputs}


def described(what: Any) -> Inputs:
    """Inputs of a description, all zero.

    Raises:
        UserError: If it is none, with what is wrong.
    """
    if isinstance(what, list):
        if not what or not all(type(size) is int and size > 0 for size in what):
            raise UserError(f"{what} must be the shape of a batch, e.g. [1, 3, 32, 32]")
        return _zeros(what, torch.float32)
    match what:
        case {"dtype": str(name), "shape": list(shape)} if isinstance(getattr(torch, name, None), torch.dtype):
            return _zeros(shape, getattr(torch, name))
        case {"named": dict(parts)}:
            return {str(name): described(part) for name, part in parts.items()}
        case {"pairs": list(parts)}:
            return {name: described(part) for name, part in parts}
        case {"list": list(parts)}:
            return [described(part) for part in parts]
        case {"listed": list(parts)}:
            return tuple(described(part) for part in parts)
        case {"value": value}:
            return value
    raise UserError(f"{what} describes no input")


def _zeros(shape: list[Any], dtype: torch.dtype) -> Tensor:
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) > _MOST:
        raise UserError(f"{shape} is no shape of a tensor that fits into memory")
    return torch.zeros(shape, dtype=dtype)


def repeated(inputs: Inputs, wanted: int) -> Inputs:
    """A batch of `wanted` images: the first ones, and again from the first where there are no more."""
    return taken(inputs, torch.arange(wanted) % count(inputs))


def drawn(inputs: Inputs, wanted: int, generator: torch.Generator) -> Inputs:
    """A batch of `wanted` images of normal noise, on the CPU; integers and flags are taken from `inputs`."""

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float32) if x.is_floating_point() else x

    return changed(changed(repeated(inputs, wanted), lambda x: x.detach().cpu()), noise)


def laid_out(images: Inputs, layout: torch.memory_format) -> Inputs:
    """The same images in this layout, where they are maps."""

    def moved(x: Tensor) -> Tensor:
        return x.to(memory_format=layout) if x.dim() == 4 or layout != torch.channels_last else x

    return changed(images, moved)
