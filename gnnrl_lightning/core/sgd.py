"""Gradient descent in a few lines, for what trains while a search goes on; whole trainings are Lightning's."""

from collections.abc import Generator, Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnrl_lightning.core.inputs import call, laid_out
from gnnrl_lightning.core.layout import layout_to_learn
from gnnrl_lightning.core.samples import Samples


def sgd_steps(
    model: nn.Module, images: Samples, labels: Tensor, batch_size: int, lr: float, steps: int, seed: int
) -> Generator[Tensor, None, None]:
    """Trains a network in place by SGD; the same network, images and seed give the same result.

    Args:
        model: In train mode until the last step, or until the generator is closed.
        images: Training images, [N, 3, H, W].
        labels: Their classes, [N].
        batch_size: Images a step.
        lr: Learning rate, constant.
        steps: How many to make at most.
        seed: Of the order of the images, and of dropout.

    Yields:
        The rows of the images of each step, after it was made.
    """
    modes = modes_of(model)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=4e-5)
    # Dropout inside the network would draw from the global generator: fork it, so that the seed decides.
    device = images.device
    layout = layout_to_learn(model, images[:2])
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(seed)
            for batch in islice(_batches(len(images), batch_size, seed), steps):
                optimizer.zero_grad()
                F.cross_entropy(call(model, laid_out(images[batch], layout)), labels[batch]).backward()
                optimizer.step()
                yield batch
    finally:
        restore(modes)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Steps in which every image is seen once, but for those that fill no batch; fewer than a batch make one."""
    return max(1, images // batch_size)


def modes_of(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    """Which modules are in train mode."""
    return [(module, module.training) for module in model.modules()]


def restore(modes: list[tuple[nn.Module, bool]]) -> None:
    """Puts every module back into its mode."""
    for module, training in modes:
        module.training = training


def _batches(images: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """The rows of every step, in a new order each epoch, whose last images are left out if they fill no batch."""
    size = min(batch_size, images)
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randperm(images, generator=generator)
        yield from rows[: images // size * size].split(size)
