"""From widths to a reward: importance, surgery, refit, recovery, and what the pruned network is worth then."""

from functools import cached_property
from typing import Protocol

from rich.progress import track
from torch import Tensor, nn

from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.evaluation.judge import Judge
from gnnrl_lightning.importance.ranking import Importance
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.pruning.verify import Removal
from gnnrl_lightning.reconstruction.allocation import closed_form_plans


class Recovery(Protocol):
    """What a pruned network may do before its reward is taken; see `recovery.py`."""

    images: int | None
    """How many training images it needs; None: all."""

    def __call__(self, model: nn.Module, images: Samples, labels: Tensor) -> None:
        """Recovers the network in place."""


class Evaluator:
    """Gives the reward of widths.

    Args:
        model: The trained network; moved to the judge's device in its fastest layout, otherwise unchanged.
        task: Its channel groups and the budget.
        remove: How channels are removed, see `provable`.
        importance: Which channels of a group go first.
        recovery: What the pruned network may do before it is measured. Where rewards are taken in bfloat16, so are the
            statistics of BatchNorm for them; the network that is handed on is recovered in float32 all the same.
        train: Training images and labels for recovery and importance.
        judge: What a pruned network is worth.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        remove: Removal,
        importance: Importance,
        recovery: Recovery,
        train: tuple[Samples, Tensor],
        judge: Judge,
    ):
        self.task, self.topology = task, task.topology
        self.remove = remove
        self.recovery = recovery
        self.judge = judge
        self.model = model.eval()
        # Now, before an importance puts a copy that it has trained in the network's place.
        self.layout = judge.prepare(self.model)
        self._train = train[0].to(judge.device, memory_format=self.layout), train[1].to(judge.device)
        self.ranking = importance(self.model, task, *self._first(importance.images)).agreed()
        self.model = self.ranking.model or self.model
        self.reconstruction = task.reconstruction and task.reconstruction.of(self.model)
        if self.reconstruction is not None and self.reconstruction.settings.enabled:
            _ = self.reconstruction.statistics  # now, while there is no other progress bar

    def kept(self, widths: Tensor) -> list[list[int]]:
        """The channels of each group that stay at these widths, [G]."""
        return self.ranking.kept(widths)

    @cached_property
    def curves(self) -> list[Tensor]:
        """What each group's readers lose at widths 0 to all, [width + 1]; nothing where nobody asks for it."""
        if self.reconstruction is None:
            return []
        return self.reconstruction.curves(self.ranking.orders)

    @cached_property
    def plans(self) -> dict[str, Tensor]:
        """The few widths [G] that the error curves suggest, by name."""
        task = self.task
        return closed_form_plans(self.topology, self.curves, task.cost, task.allowed, task.uniform)

    def values(self, kept: list[list[int]]) -> dict[str, Tensor]:
        """What is refitted to these channels, by name, full size; nothing where weights are only cut."""
        return {} if self.reconstruction is None else self.reconstruction.values(kept)

    def network(self, widths: Tensor) -> nn.Module:
        """The pruned, refitted and recovered network of widths [G], in eval mode."""
        kept = self.kept(widths)
        network = self.remove(self.model, self.topology, kept, self.values(kept))
        self.recover(network)
        return network.eval()

    def recover(self, network: nn.Module) -> None:
        """Recovers a pruned network in place."""
        self.recovery(network, *self._first(self.recovery.images))

    def __call__(self, widths: Tensor) -> float:
        """Reward of widths [G] on the first reward images."""
        return self._reward(widths, whole=False)

    def winner(self, finalists: list[Tensor], first: float) -> tuple[Tensor, float]:
        """The best of a few networks on the whole reward split, and its reward there.

        The best of many rewards on few images is partly luck; a second look at more images takes most of it away. Where
        the rewards were taken on all images there are no more, and the first finalist has won.

        Args:
            finalists: Widths [G] of each, the highest reward first.
            first: Reward of the first.
        """
        if self.judge.score is not None or self.judge.count == len(self.judge.samples):
            return finalists[0], first
        rewards = [self.whole_split(widths) for widths in track(finalists, "finalists", transient=True)]
        best = max(range(len(finalists)), key=rewards.__getitem__)
        return finalists[best], rewards[best]

    def whole_split(self, widths: Tensor) -> float:
        """Reward of widths [G] on the whole reward split: for the few finalists."""
        return self._reward(widths, whole=True)

    def _reward(self, widths: Tensor, whole: bool) -> float:
        with self.judge.autocast():
            return self.judge(self.network(widths), whole)

    def _first(self, count: int | None) -> tuple[Samples, Tensor]:
        """The first `count` training images and labels; None: all."""
        images, labels = self._train
        return images.first(count), labels[:count]
