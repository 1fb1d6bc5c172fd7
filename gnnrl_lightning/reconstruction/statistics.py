"""Statistics of the readers: what they read, and how much the network's scores feel an error of what they give.

Taken once, on the unpruned network and training images without labels. Of every reader (x its input, y = W x + b):

* the moments G = E[x xᵀ] and E[x] over sampled output positions;
* the sensitivity S = E[Σ g gᵀ], g the gradient of the scores with respect to y, summed over positions: an error δy that
  is independent from position to position moves the centred scores of an image by tr(S E[δy δyᵀ]) in the mean square.

The scores are projected on random signs, so one backward pass gives one sample of S for each image, and S follows every
shortcut and every layer behind.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor, distributed, nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.pruning.program import folded_tensors, tensors_of
from gnnrl_lightning.reconstruction.memory import activation_bytes, batch_size, within_memory
from gnnrl_lightning.reconstruction.moments import Moments
from gnnrl_lightning.reconstruction.readers import find_readers
from gnnrl_lightning.reconstruction.sums import Sums
from gnnrl_lightning.topology import Topology

log = logging.getLogger(__name__)


@dataclass
class Statistics:
    """Statistics of all readers of a network.

    Attributes:
        moments: One entry a reader, in the order of the network.
        tensors: Parameters, buffers and folded tensors of the network, by name.
        gates: What the scores lose by each channel in operations without moments, to first order: E[(∂z/∂m)²] of a gate
            m on the channel, [slots].
        unruled: Those operations: there is no rule for them, or no memory. They keep their weights.
    """

    moments: list[Moments]
    tensors: dict[str, Tensor]
    gates: Tensor
    unruled: list[str]


@torch.no_grad()
def collect(
    model: nn.Module,
    topology: Topology,
    images: Samples,
    samples: float,
    memory_gb: float,
) -> Statistics:
    """Takes the statistics of all readers of prunable channels.

    Where there are several ranks, each looks at a part of the images, and what they have seen is summed.

    Args:
        model: The trained network, in eval mode; unchanged.
        topology: Its channel groups.
        images: Training images, where the model is; no labels.
        samples: Samples for each column of a weight, where the images have so many positions.
        memory_gb: Memory that moments and activations may take, in GiB.

    Raises:
        UserError: If a weight is not finite, or the memory is not enough for a single image, with what is needed.
    """
    tensors = {name: value.detach() for name, value in tensors_of(model).items()}
    _require_finite(tensors)
    readers, unruled = find_readers(topology)
    readers, mixed, left = within_memory(readers, memory_gb)
    unruled += [node for reader in left for node in reader.layouts]
    batch = batch_size(activation_bytes(topology), memory_gb, len(images))
    sums = Sums(topology, readers, unruled, images, samples, mixed)
    starts = list(range(0, len(images), batch))
    rank, ranks = _ranks(len(starts))
    for index in track(range(rank, len(starts), ranks), "statistics of the readers", transient=True):
        part = images[starts[index] : starts[index] + batch]
        sums.look(tensors, part, index, starts[index])
    if not sums.varied:
        log.info("refit: the images are all alike, or each is of one colour; weights are only cut")
    tensors |= folded_tensors(model, topology)
    moments, gates = sums.finish(tensors, ranks)
    found = Statistics(moments, tensors, gates, unruled)
    _report(found)
    return found


def _ranks(batches: int) -> tuple[int, int]:
    """This rank, and how many share the work: all there are, or one if there is not a batch for each."""
    ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    return (distributed.get_rank(), ranks) if 1 < ranks <= batches else (0, 1)


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{name} of the network has values that are not finite; load other weights.")


def _report(found: Statistics) -> None:
    """Says once what is not solved in full."""
    for wanted, what in ((True, "one mix of channels for all taps of"), (False, "the weights as they are in")):
        names = [
            each.reader.weight
            for each in found.moments
            if (each.ridge is not None) == wanted and (each.mixed or each.ridge is None)
        ]
        if names:
            log.info("refit: too few samples or too much memory for more than %s %s", what, ", ".join(names))
    if found.unruled:
        log.info("refit: %s keep their weights, without rule or memory for them", ", ".join(found.unruled))
