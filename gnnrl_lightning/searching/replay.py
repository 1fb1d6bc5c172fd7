"""Experience replay."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn


class Replay(nn.Module):
    """The last rows of experience, as buffers, so that a checkpoint holds them.

    Args:
        capacity: Rows that are held; the oldest go first.
        shapes: Shape of each column.
    """

    written: Tensor

    def __init__(self, capacity: int, shapes: Mapping[str, tuple[int, ...]]):
        super().__init__()
        self.capacity = capacity
        self.columns = tuple(shapes)
        self.register_buffer("written", torch.zeros((), dtype=torch.long))
        for name, shape in shapes.items():
            self.register_buffer(f"of_{name}", torch.zeros(capacity, *shape))

    def __len__(self) -> int:
        return min(int(self.written), self.capacity)

    def add(self, **rows: Tensor) -> None:
        """Appends rows, [R, …] for every column."""
        count = len(rows[self.columns[0]])
        places = (int(self.written) + torch.arange(count)) % self.capacity
        for name in self.columns:
            column = cast(Tensor, getattr(self, f"of_{name}"))
            column[places.to(column.device)[-self.capacity :]] = rows[name][-self.capacity :].to(column)
        self.written += count

    def sample(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`count` rows drawn with replacement."""
        rows = torch.randint(len(self), (count,), generator=generator)
        columns = {name: cast(Tensor, getattr(self, f"of_{name}")) for name in self.columns}
        return {name: column[rows.to(column.device)] for name, column in columns.items()}
