"""What a program is run on in place of tensors, and what is noted on the way."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Constant:
    """A tensor without channels of its own: a mask, a fill value, a table of positions."""

    shape: torch.Size


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer on its way to an operation, in its shape there.

    `moved` says which of its elements lies where by then, if any has moved; `order` which of its dimensions lies where,
    if they have changed places and nothing else has.
    """

    name: str
    shape: torch.Size
    moved: Tensor | None = None
    order: tuple[int, ...] | None = None

    def at(self, dimension: int) -> int:
        """Which dimension of the parameter itself lies here."""
        return dimension if self.order is None else self.order[dimension]

    @property
    def index(self) -> Tensor:
        """Which of its elements lies where; made when asked for, because it is as large as the parameter twice."""
        return torch.arange(self.shape.numel()).view(self.shape) if self.moved is None else self.moved


@dataclass(frozen=True)
class Size:
    """A module attribute that counts channels, e.g. `Conv2d.in_channels`: after surgery it is the number kept.

    `position` is the place inside a tuple attribute, or None for a plain integer.
    """

    module: str
    attribute: str
    position: int | None
    labels: Tensor


@dataclass(frozen=True)
class Product:
    """Multiply-accumulates of one operation: factor · (kept rows) · (kept columns).

    `rows` and `columns` are label vectors (output and input channels of the weight); None where the operation has no
    parameter, and then `factor` alone counts.
    """

    node: str
    factor: int
    rows: Tensor | None = None
    columns: Tensor | None = None
