"""What every importance is, and what it gives: which channels of a group go first."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.ranks import agreed
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.pruning.channels import most_important


@dataclass(frozen=True)
class Ranking:
    """Which channels of a network go first.

    Attributes:
        scores: One tensor of scores a group, [width]; higher is more important. All groups are on one scale.
        choose: The channels of a group that stay, by its index and how many; None: the last ones of `orders`.
        model: The network to remove channels from, where the importance has trained a copy; None: the one it was given.
    """

    scores: list[Tensor]
    choose: Callable[[int, int], list[int]] | None = None
    model: nn.Module | None = None

    @property
    def orders(self) -> list[Tensor]:
        """The channels of each group as they go by their scores, the first one first, [width] each."""
        return [torch.argsort(score, descending=True, stable=True).flip(0) for score in self.scores]

    def agreed(self) -> "Ranking":
        """That of the first of the ranks that search together: what they train may differ in its last digits."""
        if self.model is not None:
            self.model.load_state_dict(agreed({name: value.cpu() for name, value in self.model.state_dict().items()}))
        first = agreed([score.cpu() for score in self.scores])
        return replace(self, scores=[score.to(mine.device) for score, mine in zip(first, self.scores, strict=True)])

    def kept(self, widths: Tensor) -> list[list[int]]:
        """The channels of each group that stay at these widths, [G]; ascending."""
        if self.choose is None:
            return most_important(self.scores, widths)
        return [self.choose(group, width) for group, width in enumerate(widths.tolist())]


class Importance(Protocol):
    """Ranks the channels of a trained network."""

    images: int | None
    """How many training images it needs; None: all."""

    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Ranks the channels; the model is not changed.

        Args:
            model: The trained network, in eval mode.
            task: Its channel groups; and the budget, which few ask for.
            images: `self.images` training images, on the model's device.
            labels: Their classes, [N].
        """
