"""Tensors of labels: one label a position of an activation or of a parameter's dimension."""

import torch
from torch import Tensor

LOCKED = 0
"""The label of every channel whose number must not change."""


def compact(labels: Tensor) -> Tensor:
    """Drops the copies that `expand` made: every broadcast dimension shrinks to size 1."""
    for dimension, stride in enumerate(labels.stride()):
        if stride == 0:
            labels = labels.narrow(dimension, 0, 1)
    return labels


def distinct(labels: Tensor) -> Tensor:
    """Shrinks every dimension along which channels do not differ to size 1, whether it holds copies or not."""
    for dimension in range(labels.dim()):
        if not varies(labels, dimension):
            labels = labels.narrow(dimension, 0, 1)
    return labels


def varies(labels: Tensor, dimension: int) -> bool:
    """Whether channels differ along this dimension."""
    labels = compact(labels)
    return labels.shape[dimension] > 1 and bool((labels != labels.narrow(dimension, 0, 1)).any())


def spread(vector: Tensor, shape: torch.Size, dimension: int) -> Tensor:
    """Labels of an activation of this shape whose channels lie along `dimension`; no memory is copied."""
    view = [1] * len(shape)
    view[dimension] = -1
    return vector.view(view).expand(shape)


def fixed(shape: torch.Size) -> Tensor:
    """Labels of an activation without channels that could go."""
    return torch.full((1,) * len(shape), LOCKED).expand(shape)
