"""Costs as functions of the widths: products of counts that are linear in them."""

from collections.abc import Sequence

import torch
from torch import Tensor

Count = tuple[int, Tensor]
"""How a number of channels follows the widths: (fixed, counts [G]) stands for fixed + counts·w."""


class Products:
    """K products of D counts each, as functions of the widths: factor · ∏ (fixed + counts·w).

    Exact, because doubles hold integers below 2⁵³.
    """

    def __init__(self, factors: Sequence[float], counts: Sequence[Sequence[Count]], groups: int):
        depth = max((len(row) for row in counts), default=0)
        one: Count = (1, torch.zeros(groups, dtype=torch.long))
        rows = [[*row, *[one] * (depth - len(row))] for row in counts]
        self.factors = torch.tensor(factors, dtype=torch.float64)  # [K]
        self.fixed = torch.tensor([[fixed for fixed, _ in row] for row in rows], dtype=torch.float64)  # [K, D]
        flat = [vector for row in rows for _, vector in row]
        self.counts = torch.stack(flat).double() if flat else torch.zeros(0, groups, dtype=torch.float64)  # [K·D, G]

    def __call__(self, widths: Tensor) -> Tensor:
        """Values at widths [..., G], [..., K]."""
        counts = (widths.double() @ self.counts.T).view(*widths.shape[:-1], *self.fixed.shape)
        return self.factors * (self.fixed + counts).prod(-1)
