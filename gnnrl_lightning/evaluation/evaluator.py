"""From widths to a reward: importance, surgery, recovery, accuracy on the reward split."""

from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from gnnrl_lightning.data.preprocessing import HeldImages
from gnnrl_lightning.models.layout import to_fastest_layout
from gnnrl_lightning.pruning.importance.ranking import Importance
from gnnrl_lightning.pruning.verify import Removal
from gnnrl_lightning.reconstruction.allocation import closed_form_plans
from gnnrl_lightning.task import Task


class Recovery(Protocol):
    """What a pruned network may do before its reward is taken; see `recovery.py`."""

    images: int | None
    """How many training images it needs; None: all."""

    def __call__(self, model: nn.Module, images: HeldImages, labels: Tensor) -> None:
        """Recovers the network in place."""


@torch.inference_mode()
def correct(model: nn.Module, images: HeldImages, labels: Tensor, batch_size: int) -> int:
    """Number of images whose highest score is their label, among the first that the labels, [N], are for."""
    model.eval()
    hits = 0
    for start in range(0, len(labels), batch_size):
        batch = labels[start : start + batch_size]
        hits += int((model(images[start : start + len(batch)]).argmax(1) == batch).sum())
    return hits


@torch.inference_mode()
def log_probabilities(model: nn.Module, images: HeldImages, count: int, batch_size: int) -> Tensor:
    """What a network says of the first `count` images: log-softmax of its scores, float32 [count, classes]."""
    model.eval()
    starts = range(0, count, batch_size)
    return torch.cat([model(images[at : min(at + batch_size, count)]).float().log_softmax(1) for at in starts])


def divergence(said: Tensor, network: Tensor) -> float:
    """KL(said ‖ network) in nats, the mean over images; both log-probabilities, [N, classes]."""
    each = F.kl_div(network, said, reduction="none", log_target=True).sum(1)
    # A network whose scores are no numbers has a bad reward, as it has with top-1, and not one that no agent can take.
    return float(each.double().nan_to_num(nan=_WORST, posinf=_WORST).mean())


_WORST = 1000.0


class Evaluator:
    """Gives the reward of widths: minus the top-1 error in %, on images that nothing was trained on in the search.

    Or, where the unpruned network is given, minus the divergence from what that says of these images, in nats; labels
    are not looked at then.

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
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        remove: Removal,
        importance: Importance,
        recovery: Recovery,
        reward: tuple[HeldImages, Tensor],
        train: tuple[HeldImages, Tensor],
        reward_images: int,
        batch_size: int,
        device: torch.device,
        precision: str = "32-true",
        unpruned: nn.Module | None = None,
    ):
        self.device = device
        # No float16: its range is too narrow for the gradients of a recovery that trains, and nothing scales them here.
        self.bfloat16 = precision == "bf16-mixed"
        self.task, self.topology = task, task.topology
        self.remove = remove
        self.recovery = recovery
        self.batch_size = batch_size
        self.reward_images = reward_images
        self.model = model.to(device).eval()
        self.layout = to_fastest_layout(self.model, reward[0][:2].to(device))
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
        if self.reward_images == len(self._reward[1]):
            return finalists[0], first
        rewards = [self.whole_split(widths) for widths in track(finalists, "finalists", transient=True)]
        best = max(range(len(finalists)), key=rewards.__getitem__)
        return finalists[best], rewards[best]

    def whole_split(self, widths: Tensor) -> float:
        """Reward of widths [G] on the whole reward split: for the few finalists."""
        return self._reward_on(len(self._reward[1]), widths)

    def reward_of(self, network: nn.Module) -> float:
        """Reward of a finished network on the whole reward split."""
        return self._judge(network, len(self._reward[1]))

    @torch.no_grad()
    def said_by(self, network: nn.Module) -> Tensor:
        """What a network says of the whole reward split: log-probabilities, [N, classes]."""
        images, _ = self._reward
        layout = to_fastest_layout(network, self.example)
        placed = images.to(self.device, memory_format=layout)
        return log_probabilities(network, placed, len(images), self.batch_size)

    @property
    def example(self) -> Tensor:
        """Two images, as networks take them."""
        return self._reward[0][:2]

    def _reward_on(self, count: int, widths: Tensor) -> float:
        # No cache: a recovery that trains would go on with the weights of its first step.
        with torch.autocast(self.device.type, torch.bfloat16, self.bfloat16, cache_enabled=False):
            return self._judge(self.network(widths), count)

    def _judge(self, network: nn.Module, count: int) -> float:
        images, labels = self._reward
        with torch.autocast(self.device.type, torch.bfloat16, self.bfloat16, cache_enabled=False):
            if self._said is not None:
                mine = log_probabilities(network, images, count, self.batch_size)
                return -divergence(self._said[:count], mine)
            hits = correct(network, images, labels[:count], self.batch_size)
        return 100.0 * hits / count - 100.0

    def _first(self, count: int | None) -> tuple[HeldImages, Tensor]:
        """The first `count` training images and labels; None: all."""
        images, labels = self._train
        return HeldImages(images.pixels[:count], images.preprocessing), labels[:count]

    def _place(self, data: tuple[HeldImages, Tensor]) -> tuple[HeldImages, Tensor]:
        images, labels = data
        return images.to(self.device, memory_format=self.layout), labels.to(self.device)
