"""Copies of networks, whatever they keep."""

import copy
from typing import Any

from torch import Tensor, nn


def copied(model: nn.Module, replaced: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy.

    What a forward or a hook has left in an attribute, such as the weight of an old `weight_norm`, hangs in a graph of
    gradients, from which torch copies nothing: it is taken out of that.

    Args:
        model: Any network, unchanged.
        replaced: What stands in the copy for an object, by its `id`, as in the memo of `copy.deepcopy`.
    """
    memo: dict[int, Any] = dict(replaced or {})
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(model, memo)
