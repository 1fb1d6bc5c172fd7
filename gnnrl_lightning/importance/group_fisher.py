"""Group Fisher pruning: the least channel of the whole network goes, again and again, while the network trains."""

import copy
from contextlib import closing

import torch
from rich.progress import Progress
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError, require_number, require_whole
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.core.sgd import sgd_steps
from gnnrl_lightning.importance.batches import require_images
from gnnrl_lightning.importance.fisher import activations
from gnnrl_lightning.importance.gates import gate_gradients
from gnnrl_lightning.importance.masks import zero_reads
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.topology import Topology


class GroupFisher:
    """The order in which channels go from a network while it trains.

    Liu et al., "Group Fisher Pruning" (ICML 2021, alg. 2): a copy of the network is trained. Over `interval` steps the
    squares of the gates' gradients add up for every channel, divided by the memory that it takes, see `Fisher`. Then
    the least channel of the whole network goes, and the sums begin anew, until the network is within the budget. What
    is gone stays gone: the weights that read it are kept at zero. Our reading: the gradients are those in eval mode, of
    the images of each step, after it; where a divisor makes a group lose several channels at once, their mean counts.

    Args:
        images: Training images, at least 2; None: all.
        batch_size: Images a step, at least 2.
        lr: Learning rate above 0, constant.
        interval: Steps between two removals, at least 1.
        channels_per_step: Removals at a time, at least 1.
        seed: Of the training.

    Raises:
        UserError: If a value is out of range.
    """

    needs_labels = True

    def __init__(
        self, images: int | None, batch_size: int, lr: float, interval: int, channels_per_step: int, seed: int
    ):
        require_images(images, batch_size, least=2)  # BatchNorm needs two: one has no variance
        require_number("importance.lr", lr, above=0)
        require_whole("importance.interval", interval, 1)
        require_whole("importance.channels_per_step", channels_per_step, 1)
        require_whole("importance.seed", seed, 0)
        self.images = images
        self.batch_size = batch_size
        self.lr = lr
        self.interval = interval
        self.channels_per_step = channels_per_step
        self.seed = seed

    def check(self, topology: Topology) -> None:
        """Before any training.

        Raises:
            UserError: If channels are read by what is no parameter, and so cannot be kept at zero.
        """
        for (name, dimension), slots in topology.slots.items():
            reads = topology.labels.readers.get(name) == dimension and bool((slots >= 0).any())
            if reads and name not in topology.program.parameters:
                raise UserError(
                    f"importance=group_fisher keeps weights that read removed channels at zero while it trains, and "
                    f"{name} is no parameter but computed; take importance=fisher."
                )

    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Trains a copy; its channels rank by when they went, and those that are left by what they have by then."""
        topology = task.topology
        self.check(topology)
        network = copy.deepcopy(model)
        memory = activations(topology)
        sums = torch.zeros(len(memory))
        mask = torch.ones(len(memory), dtype=torch.bool)
        gone: list[int] = []

        def cost() -> int:
            widths = torch.bincount(topology.group_of_slot[mask], minlength=len(topology.groups))
            return int(task.cost(widths))

        start = cost()
        removals = sum(len(group.widths()) - 1 for group in topology.groups)  # at most
        steps = self.interval * (removals + 1)
        training = sgd_steps(network, images, labels, self.batch_size, self.lr, steps, self.seed)
        with Progress(transient=True) as progress, closing(training):
            bar = progress.add_task("importance: group_fisher", total=start - task.allowed)
            for step, rows in enumerate(training, 1):
                zero_reads(network, topology, mask)
                sums += gate_gradients(network, topology, images[rows], labels[rows]).square().sum(0).cpu() / memory
                if step % self.interval:
                    continue
                if cost() <= task.allowed:
                    break
                for _ in range(self.channels_per_step):
                    if cost() > task.allowed:
                        least = _least(sums, mask, topology)
                        mask[least] = False
                        gone += least
                sums.zero_()
                progress.update(bar, completed=start - cost())
        left = mask.nonzero().flatten()
        order = torch.cat([torch.tensor(gone, dtype=torch.long), left[sums[left].argsort(stable=True)]])
        scores = torch.empty(len(memory))
        scores[order] = torch.arange(1.0, len(memory) + 1)
        return Ranking(list(scores.split(topology.full_widths().tolist())), model=network)


def _least(scores: Tensor, mask: Tensor, topology: Topology) -> list[int]:
    """The slots that go next: of the group that loses least by its next smaller width."""
    candidates: list[tuple[float, list[int]]] = []
    for index, group in enumerate(topology.groups):
        slots = (mask & (topology.group_of_slot == index)).nonzero().flatten()
        smaller = [width for width in group.widths() if width < len(slots)]
        if smaller:
            found = slots[scores[slots].argsort(stable=True)[: len(slots) - smaller[-1]]]
            candidates.append((float(scores[found].mean()), found.tolist()))
    return min(candidates)[1]
