"""What a network is worth on the reward split, in any of the ways that a reward can be."""

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.copies import copied
from gnnrl_lightning.core.inputs import Inputs, changed
from gnnrl_lightning.core.layout import to_fastest_layout
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.evaluation.reward import Score, correct, divergence, log_probabilities, number_of


class Judge:
    """Minus the top-1 error in %, on images that nothing was trained on in the search.

    Or, where the unpruned network is given, minus the divergence from what that says of these images, in nats; labels
    are not looked at then. Or a score of the user's own, which looks at images of its own.

    Args:
        split: Inputs and labels of the reward split.
        count: The first so many of them are for the rewards of a search; None: all.
        batch_size: Inputs a forward pass.
        device: Where networks run.
        precision: The trainer's. With `bf16-mixed` rewards are taken in bfloat16.
        unpruned: The network from which the divergence is taken; None: rewards are minus the top-1 error.
        score: What a reward is instead of both.
    """

    def __init__(
        self,
        split: tuple[Samples, Tensor],
        count: int | None,
        batch_size: int,
        device: torch.device,
        precision: str = "32-true",
        unpruned: nn.Module | None = None,
        score: Score | None = None,
    ):
        self.samples, self.labels = split
        self.count = min(count or len(self.samples), len(self.samples))
        self.batch_size = batch_size
        self.device = device
        # No float16: its range is too narrow for the gradients of a recovery that trains, and nothing scales them here.
        self.bfloat16 = precision == "bf16-mixed"
        self.unpruned = unpruned
        self.score = score
        self._expected: list[Tensor] | None = None

    @property
    def example(self) -> Inputs:
        """Two samples, as networks take them."""
        return self.samples[:2]

    def prepare(self, model: nn.Module) -> torch.memory_format:
        """Brings a network to the device, and the samples beside it, in the layout that is fastest for it.

        From now on the unpruned network may change: what it says of the samples is kept.
        """
        model.to(self.device)
        layout = to_fastest_layout(model, changed(self.example, lambda x: x.to(self.device)))
        self.samples = self.samples.to(self.device, memory_format=layout)
        self.labels = self.labels.to(self.device)
        if self.unpruned is not None:
            self._expected = self.log_probabilities(self.unpruned.to(self.device))
        return layout

    def __call__(self, network: nn.Module, whole: bool = True) -> float:
        """The reward of a network that may be changed by it.

        Args:
            network: Any.
            whole: On the whole split, or on the first `count` alone.
        """
        try:
            return self._of(network, whole)
        except StopIteration as error:  # loops above would take it for their own end
            raise RuntimeError("a reward ran out of data: StopIteration in the score or the network") from error

    def _of(self, network: nn.Module, whole: bool) -> float:
        if self.score is not None:
            with torch.no_grad():
                return number_of(self.score(network.eval()))
        count = len(self.samples) if whole else self.count
        with self.autocast():
            if self._expected is not None:
                given = log_probabilities(network, self.samples, count, self.batch_size)
                return -divergence([each[:count] for each in self._expected], given)
            hits = correct(network, self.samples, self.labels[:count], self.batch_size)
        return 100.0 * hits / count - 100.0

    def autocast(self) -> torch.autocast:
        """The precision of rewards."""
        # No cache: a recovery that trains would go on with the weights of its first step.
        return torch.autocast(self.device.type, torch.bfloat16, self.bfloat16, cache_enabled=False)

    def of_finished(self, network: nn.Module) -> float:
        """The reward of a network that is handed on, on the whole split."""
        return self(network if self.score is None else copied(network))

    @torch.no_grad()
    def log_probabilities(self, network: nn.Module) -> list[Tensor]:
        """What a network says of the whole split, see `log_probabilities` of reward.py."""
        layout = to_fastest_layout(network, self.example)
        placed = self.samples.to(self.device, memory_format=layout)
        return log_probabilities(network, placed, len(placed), self.batch_size)
