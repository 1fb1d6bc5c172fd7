"""Where agents begin that are given a plan: near it."""

import torch
from torch import Tensor, nn

SPREAD = 0.25
"""Standard deviation, before the logistic function, of what is drawn near a plan: larger steps mostly make it worse."""
_EDGE = 0.02


def as_logits(fractions: Tensor) -> Tensor:
    """Fractions in [0, 1] before the logistic function; those next to an end stay where draws can leave it."""
    return torch.logit(fractions.float().clamp(_EDGE, 1 - _EDGE))


class DrawsNear(nn.Module):
    """An agent whose random draws can be near a plan instead of anywhere.

    Args:
        groups: How many groups there are.
    """

    kept: Tensor

    def __init__(self, groups: int):
        super().__init__()
        self.register_buffer("kept", torch.ones(groups))

    def begin(self, kept: Tensor) -> None:
        """Draws near this plan from now on; fractions kept, [G]."""
        self.kept.copy_(kept)

    @property
    def has_plan(self) -> bool:
        """Whether there is a plan to draw near."""
        return bool((self.kept < 1).any())

    def near(self, count: int, generator: torch.Generator) -> Tensor:
        """Fractions to keep around those of the plan, [count, G] in (0, 1)."""
        noise = torch.randn(count, len(self.kept), generator=generator)
        return torch.sigmoid(as_logits(self.kept.cpu()) + SPREAD * noise)
