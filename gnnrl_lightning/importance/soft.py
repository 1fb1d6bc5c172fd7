"""Soft filter pruning: filters are set to zero after every epoch of a training, and may come back in the next."""

import copy

from rich.progress import track
from torch import Tensor, nn

from gnnrl_lightning.core.checks import require_number, require_whole
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.core.sgd import sgd_steps, steps_per_epoch
from gnnrl_lightning.importance.batches import require_images
from gnnrl_lightning.importance.magnitude import require_order
from gnnrl_lightning.importance.masks import zero_filters
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.pruning.channels import magnitude, most_important


class SoftPruning:
    """Norm of the filters after a training that zeroes the smallest (He et al., "Soft Filter Pruning", IJCAI 2018).

    A copy of the network is trained. After every epoch the filters with the smallest norm are set to zero, so many that
    each group keeps what the uniform plan for the budget does; they go on being trained, and those that have grown by
    the next time stay. Coupled filters are judged and zeroed together. Our reading: filters alone are zeroed, neither
    the shift of the BatchNorm behind them nor a bias: at exactly 0 a ReLU passes no gradient, and none would come back.
    A BatchNorm without variance passes some hundred times the usual gradient, so few epochs want a low learning rate.

    Args:
        images: Training images of an epoch, at least 2; None: all.
        batch_size: Images a step, at least 2.
        epochs: Passes over these images, at least 1.
        lr: Learning rate above 0, constant.
        p: Order of the norm, 1 or 2.
        seed: Of the training.

    Raises:
        UserError: If a value is out of range.
    """

    needs_labels = True

    def __init__(self, images: int | None, batch_size: int, epochs: int, lr: float, p: int, seed: int):
        require_images(images, batch_size, least=2)  # BatchNorm needs two: one has no variance
        require_whole("importance.epochs", epochs, 1)
        require_number("importance.lr", lr, above=0)
        require_order(p)
        require_whole("importance.seed", seed, 0)
        self.images = images
        self.batch_size = batch_size
        self.epochs = epochs
        self.lr = lr
        self.p = p
        self.seed = seed

    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Trains a copy and ranks its filters by norm; those that are zero go first."""
        network, topology = copy.deepcopy(model), task.topology
        epoch = steps_per_epoch(len(images), self.batch_size)
        steps = sgd_steps(network, images, labels, self.batch_size, self.lr, self.epochs * epoch, self.seed)
        bar = track(steps, "importance: soft", total=self.epochs * epoch, transient=True)
        for step, _ in enumerate(bar, 1):
            if step % epoch == 0:
                kept = most_important(magnitude(network, topology, self.p), task.uniform)
                zero_filters(network, topology, topology.keep_mask(kept))
        return Ranking(magnitude(network, topology, self.p), model=network)
