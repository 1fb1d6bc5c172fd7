"""From widths to a reward: importance, surgery, recovery, accuracy on the reward split."""

import copy
from functools import cached_property
from typing import Protocol

import torch
from rich.progress import track
from torch import Tensor, nn

from gnnrl_lightning.core.inputs import Inputs, changed
from gnnrl_lightning.core.layout import to_fastest_layout
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.evaluation.reward import Score, correct, divergence, number_of, said_of
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
    """Gives the reward of widths: minus the top-1 error in %, on images that nothing was trained on in the search.

    Or, where the unpruned network is given, minus the divergence from what that says of these images, in nats; labels
    are not looked at then. Or a score of the user's own, which looks at images of its own.

    Args:
        model: The trained network; moved to `device` in its fastest layout, otherwise unchanged.
        task: Its channel groups and the budget.
        remove: How channels are removed, see `provable`.
        importance: Which channels of a group go first.
        recovery: What the pruned network may do before it is measured.
        reward: Images and labels of the reward split; the search uses the first `reward_images`.
        train: Training images and labels for recovery and importance.
        reward_images: How many reward images a reward is taken on.
        batch_size: Images a forward pass.
        device: Where networks run.
        precision: The trainer's. With `bf16-mixed` rewards are taken in bfloat16, the statistics of BatchNorm for them
            too; the network that is handed on is recovered in float32 all the same.
        unpruned: The network from which the divergence is taken; None: rewards are minus the top-1 error.
        score: What a reward is instead of both.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        remove: Removal,
        importance: Importance,
        recovery: Recovery,
        reward: tuple[Samples, Tensor],
        train: tuple[Samples, Tensor],
        reward_images: int,
        batch_size: int,
        device: torch.device,
        precision: str = "32-true",
        unpruned: nn.Module | None = None,
        score: Score | None = None,
    ):
        self.device = device
        # No float16: its range is too narrow for the gradients of a recovery that trains, and nothing scales them here.
        self.bfloat16 = precision == "bf16-mixed"
        self.task, self.topology = task, task.topology
        self.remove = remove
        self.recovery = recovery
        self.batch_size = batch_size
        self.reward_images = reward_images
        self.score = score
        self.model = model.to(device).eval()
        self.layout = to_fastest_layout(self.model, changed(reward[0][:2], lambda x: x.to(device)))
        self._reward = self._place(reward)
        self._train = self._place(train)
        # Now, before an importance puts a copy that it has trained in the network's place.
        self._said = None if unpruned is None else self.said_by(unpruned.to(device))
        self.ranking = importance(self.model, task, *self._first(importance.images))
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
        """Reward of widths [G] on the first `reward_images` images."""
        return self._reward_on(self.reward_images, widths)

    def winner(self, finalists: list[Tensor], first: float) -> tuple[Tensor, float]:
        """The best of a few networks on the whole reward split, and its reward there.

        The best of many rewards on few images is partly luck; a second look at more images takes most of it away. Where
        the rewards were taken on all images there are no more, and the first finalist has won.

        Args:
            finalists: Widths [G] of each, the highest reward first.
            first: Reward of the first.
        """
        if self.score is not None or self.reward_images == len(self._reward[0]):
            return finalists[0], first
        rewards = [self.whole_split(widths) for widths in track(finalists, "finalists", transient=True)]
        best = max(range(len(finalists)), key=rewards.__getitem__)
        return finalists[best], rewards[best]

    def whole_split(self, widths: Tensor) -> float:
        """Reward of widths [G] on the whole reward split: for the few finalists."""
        return self._reward_on(len(self._reward[0]), widths)

    def reward_of(self, network: nn.Module) -> float:
        """Reward of a finished network on the whole reward split."""
        if self.score is not None:
            network = copy.deepcopy(network)  # whatever a score does to a network, this one is handed on
        return self._judge(network, len(self._reward[0]))

    @torch.no_grad()
    def said_by(self, network: nn.Module) -> list[Tensor]:
        """What a network says of the whole reward split, see `said_of`."""
        images, _ = self._reward
        layout = to_fastest_layout(network, self.example)
        placed = images.to(self.device, memory_format=layout)
        return said_of(network, placed, len(images), self.batch_size)

    @property
    def example(self) -> Inputs:
        """Two images, as networks take them."""
        return self._reward[0][:2]

    def _reward_on(self, count: int, widths: Tensor) -> float:
        # No cache: a recovery that trains would go on with the weights of its first step.
        with torch.autocast(self.device.type, torch.bfloat16, self.bfloat16, cache_enabled=False):
            return self._judge(self.network(widths), count)

    def _judge(self, network: nn.Module, count: int) -> float:
        if self.score is not None:
            with torch.no_grad():
                return number_of(self.score(network.eval()))
        images, labels = self._reward
        with torch.autocast(self.device.type, torch.bfloat16, self.bfloat16, cache_enabled=False):
            if self._said is not None:
                mine = said_of(network, images, count, self.batch_size)
                return -divergence([each[:count] for each in self._said], mine)
            hits = correct(network, images, labels[:count], self.batch_size)
        return 100.0 * hits / count - 100.0

    def _first(self, count: int | None) -> tuple[Samples, Tensor]:
        """The first `count` training images and labels; None: all."""
        images, labels = self._train
        return images.first(count), labels[:count]

    def _place(self, data: tuple[Samples, Tensor]) -> tuple[Samples, Tensor]:
        images, labels = data
        return images.to(self.device, memory_format=self.layout), labels.to(self.device)
