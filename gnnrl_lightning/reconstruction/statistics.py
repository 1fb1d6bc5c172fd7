"""Statistics of the readers: what they read, and how much the network's scores feel an error of what they give.

Taken once, on the unpruned network and training images without labels. Of every reader (x its input, y = W x + b):

* the moments G = E[x xᵀ] and E[x] over sampled output positions;
* the sensitivity S = E[Σ g gᵀ], g the gradient of the scores with respect to y, summed over positions: an error δy that
  is independent from position to position moves the centred scores of an image by tr(S E[δy δyᵀ]) in the mean square.

The scores are projected on random signs, so one backward pass gives one sample of S for each image, and S follows every
shortcut and every layer behind.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, distributed, fx, nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.inputs import Inputs, changed, count
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.pruning.program import Layer, folded_tensors, run, tensors_of
from gnnrl_lightning.reconstruction.moments import Moments, validated
from gnnrl_lightning.reconstruction.readers import Layout, Reader, find_readers
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.labels import once
from gnnrl_lightning.topology.trace import shape_of

log = logging.getLogger(__name__)

_FEWEST = 2.0
"""Samples for each column below which one mix of channels for all taps is solved for."""
_LEAST_SAMPLES = 4096
"""Samples of a reader however few its columns are: of small ones they cost next to nothing."""
GIB = 2**30
_SENSITIVITY_IMAGES = 128
_LARGEST_BATCH = 64
_SKETCH = 8
"""Where a layer has very many rows, S is summed over so many random combinations of the positions of each image."""
_EXACT_ROWS = _SKETCH * _SENSITIVITY_IMAGES


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
    readers, mixed, left = _within_memory(readers, memory_gb)
    unruled += [node for reader in left for node in reader.layouts]
    sizes = _activation_bytes(topology)
    batch = _batch_size(sizes, memory_gb, len(images))
    taking = _Taking(topology, readers, unruled, images, samples, mixed)
    starts = list(range(0, len(images), batch))
    rank, ranks = _ranks(len(starts))
    for index in track(range(rank, len(starts), ranks), "statistics of the readers", transient=True):
        part = images[starts[index] : starts[index] + batch]
        taking.look(tensors, part, index, starts[index])
    if not taking.varied:
        log.info("refit: the images are all alike, or each is of one colour; weights are only cut")
    found = taking.finish(tensors | folded_tensors(model, topology), ranks)
    _report(found)
    return found


class _Taking:
    """Sums that grow with every batch."""

    def __init__(
        self,
        topology: Topology,
        readers: list[Reader],
        unruled: list[str],
        images: Samples,
        samples: float,
        mixed: set[str],
    ):
        self.topology, self.readers, self.unruled = topology, readers, unruled
        self.device = images.device
        self.images, self.samples = len(images), samples
        self.varied = images.varied
        self.too_large = mixed
        self.of_node = {node: reader for reader in readers for node in reader.layouts}
        self.sums: dict[str, dict[str, Tensor]] = {}
        self.mixed: dict[str, bool] = {}
        self.gates = torch.zeros(len(topology.group_of_slot), dtype=torch.float64, device=self.device)
        self.looked = torch.zeros(1, dtype=torch.float64, device=self.device)

    def look(self, tensors: Mapping[str, Tensor], images: Inputs, index: int, first: int) -> None:
        """Runs a batch, number `index` and from image `first` on, and some batches back again."""
        backward, number = first < _SENSITIVITY_IMAGES, count(images)

        def read(node: fx.Node, activation: Tensor, layer: Layer) -> Any:
            reader = self.of_node.get(node.name)
            if reader is not None:
                self._add_moments(reader, reader.layouts[node.name], activation.detach(), number, index)
            result = layer(activation)
            if backward and reader is not None:
                layout = reader.layouts[node.name]
                result.register_hook(lambda gradient: self._add_sensitivity(reader, layout, gradient, first))
            elif backward and node.name in self.unruled and activation.requires_grad:
                kept = activation.detach()
                activation.register_hook(lambda gradient: self._add_gates(node, kept * gradient))
            return result

        if not backward:
            run(tensors, self.topology, images, read)
            return
        with torch.enable_grad():
            images = changed(images, lambda x: x.detach().requires_grad_(x.is_floating_point()))
            outputs = run(tensors, self.topology, images, read)
            generator = torch.Generator().manual_seed(index)
            total = sum((_projected(y, generator) for y in outputs if _scores(y)), torch.zeros((), device=self.device))
            total.backward()
        self.looked += number

    def _add_moments(self, reader: Reader, layout: Layout, x: Tensor, images: int, index: int) -> None:
        if reader.weight not in self.sums:
            self._begin(reader, layout.positions(x) * self.images // images)
        sums, mixed = self.sums[reader.weight], self.mixed[reader.weight]
        unknowns = reader.channels if mixed else reader.columns
        wanted = math.ceil(max(self.samples * unknowns, _LEAST_SAMPLES) * images / self.images)
        # Seeded by the batch, so that samples do not depend on how many ranks share the batches.
        generator = torch.Generator().manual_seed(index)
        inputs = layout.inputs(x, layout.sample(x, wanted, generator)).double()  # [blocks, positions, channels, taps]
        half = index % 2
        sums["mean"][half] += inputs.sum(1)
        sums["samples"][half] += inputs.shape[1]
        columns = inputs.transpose(2, 3).flatten(1, 2) if mixed else inputs.flatten(2)
        sums["gram"][half].baddbmm_(columns.transpose(1, 2), columns)

    def _begin(self, reader: Reader, positions: int) -> None:
        """Decides once whether the moments are those of columns or, where these are too many, of channels."""
        mixed = reader.weight in self.too_large or (reader.taps > 1 and positions < _FEWEST * reader.columns)
        self.mixed[reader.weight] = mixed
        size = reader.channels if mixed else reader.columns

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=self.device)

        self.sums[reader.weight] = {
            "gram": zeros(2, reader.blocks, size, size),  # every second batch is the other half
            "mean": zeros(2, reader.blocks, reader.channels, reader.taps),
            "sensitivity": zeros(reader.blocks, min(reader.rows, _EXACT_ROWS), reader.rows),
            "samples": zeros(2),
        }

    def _add_sensitivity(self, reader: Reader, layout: Layout, gradient: Tensor, first: int) -> None:
        rows, total = layout.outputs(gradient.detach()).double(), self.sums[reader.weight]["sensitivity"]
        if reader.rows <= _EXACT_ROWS:
            total.baddbmm_(rows.transpose(1, 2), rows)
            return
        # Signed sums of positions: on average their products are those of the positions themselves.
        generator = torch.Generator().manual_seed(first)
        sums = _SKETCH * min(len(gradient), _SENSITIVITY_IMAGES - first)
        place = torch.randint(sums, (rows.shape[1],), generator=generator) + _SKETCH * first
        signs = torch.randint(0, 2, (rows.shape[1], 1), generator=generator) * 2.0 - 1
        total.index_add_(1, place.to(self.device), rows * signs.to(rows))

    def _add_gates(self, node: fx.Node, change: Tensor) -> None:
        """Random signs make images independent: the square of their sum is on average the sum of their squares."""
        labels = self.topology.labels.outputs[node.all_input_nodes[0].name]
        slots = self.topology.slots_of(once(labels))
        change = change.sum([d for d, size in enumerate(slots.shape) if size == 1], keepdim=True).double()
        slots = slots.expand(change.shape).flatten().to(self.device)
        owned = slots >= 0
        total = torch.zeros_like(self.gates).index_add_(0, slots[owned], change.flatten()[owned])
        self.gates += total.square()

    def finish(self, tensors: dict[str, Tensor], ranks: int) -> Statistics:
        """Means over all images that these ranks have looked at."""

        def reduce(value: Tensor) -> Tensor:
            if ranks > 1:
                distributed.all_reduce(value)
            return value

        looked = reduce(self.looked)
        moments = []
        for reader in self.readers:
            sums = {name: reduce(value) for name, value in self.sums.pop(reader.weight).items()}
            sensitivity = sums["sensitivity"] / looked.sqrt()
            if reader.rows <= _EXACT_ROWS:
                sensitivity = _root(sums["sensitivity"] / looked)
            moments.append(self._moments(reader, sums, sensitivity, tensors[reader.weight]))
        return Statistics(moments, tensors, (reduce(self.gates) / looked).cpu(), self.unruled)

    def _moments(self, reader: Reader, sums: dict[str, Tensor], sensitivity: Tensor, weight: Tensor) -> Moments:
        """Means over all images, and what solutions of one half of them are worth on the other."""
        mixed, samples = self.mixed[reader.weight], sums["samples"]

        def about_mean(total: Tensor, mean: Tensor, count: Tensor) -> Tensor:
            gram = total / (count * (reader.taps if mixed else 1))
            if not reader.centred:
                return gram
            if mixed:  # what is behind takes the mean of every tap
                return gram - mean @ mean.mT / reader.taps
            return gram - mean.flatten(1).unsqueeze(2) * mean.flatten(1).unsqueeze(1)

        mean = sums["mean"].sum(0) / samples.sum()
        if not self.varied:
            mean = torch.zeros_like(mean)
        gram = about_mean(sums["gram"].sum(0), mean, samples.sum())
        moments = Moments(reader, gram, mean, sensitivity, mixed, int(samples.sum()), None, 1.0, 1.0)
        if samples.min() > 0 and self.varied:
            parts = zip(sums["gram"], sums["mean"], samples, strict=True)
            halves = torch.stack([about_mean(total, first / count, count) for total, first, count in parts])
            matrix = reader.layout.matrix(weight).double()
            felt = (sensitivity @ matrix.flatten(2)).unflatten(2, matrix.shape[2:])
            rows = moments.flat(felt if felt.any() else matrix)
            kept, gone = (moments.columns(part).to(rows.device) for part in _every_second(reader.slots >= 0))
            moments.ridge, moments.optimism, moments.share = validated(halves, rows, kept, gone)
        return moments


def _ranks(batches: int) -> tuple[int, int]:
    """This rank, and how many share the work: all there are, or one if there is not a batch for each."""
    ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    return (distributed.get_rank(), ranks) if 1 < ranks <= batches else (0, 1)


def _every_second(prunable: Tensor) -> tuple[Tensor, Tensor]:
    """Channels that stay and that go in a trial, [blocks, k] each, of flags [blocks, channels]."""
    goes = prunable & (prunable.cumsum(1) % 2 == 1)
    # Blocks have equally many prunable channels.
    return tuple(part.nonzero()[:, 1].view(len(prunable), -1) for part in (~goes, goes))  # type: ignore[return-value]


def _root(matrix: Tensor) -> Tensor:
    """F with Fᵀ F = matrix, for symmetric matrices [blocks, n, n] without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp(min=0).sqrt().unsqueeze(2) * vectors.mT


def _scores(output: Any) -> bool:
    return isinstance(output, Tensor) and output.requires_grad


def _projected(scores: Tensor, generator: torch.Generator) -> Tensor:
    """A sum of an output's values with random signs; of classes about their mean, since what all have means nothing."""
    signs = torch.randint(0, 2, scores.shape, generator=generator).to(scores) * 2 - 1
    if scores.dim() == 2:
        signs = signs - signs.mean(1, keepdim=True)
    return (signs * scores).sum()


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{name} of the network has values that are not finite; load other weights.")


def _activation_bytes(topology: Topology) -> int:
    """What a forward pass of one image keeps for the way back, at most."""
    values = (node.meta.get("val") for node in topology.program.graph.nodes if node.op == "call_function")
    return sum(4 * shape_of(value).numel() for value in values if isinstance(value, Tensor)) // topology.program.batch


def _batch_size(bytes_an_image: int, memory_gb: float, images: int) -> int:
    most = int(memory_gb * GIB / 2 // max(bytes_an_image, 1))
    if most < 1:
        raise UserError(
            f"refit.memory_gb={memory_gb:g} is not enough for the activations of one image, which take "
            f"{bytes_an_image / GIB:.2g} GiB; give refit.memory_gb={math.ceil(2 * bytes_an_image / GIB)}, or "
            f"refit.enabled=false."
        )
    return min(most, _LARGEST_BATCH, -(-images // 2))  # two batches at least: solutions of one are tried on the other


def _within_memory(readers: list[Reader], memory_gb: float) -> tuple[list[Reader], set[str], list[Reader]]:
    """Readers of which moments are taken, of those the weights with moments of channels alone, and those left out.

    From the largest on, as many as it takes until all fit.
    """

    def size(reader: Reader, mixed: bool) -> int:
        columns = reader.channels if mixed else reader.columns
        rows = reader.blocks * min(reader.rows, _EXACT_ROWS) * reader.rows
        return 8 * (2 * reader.blocks * (columns**2 + reader.columns) + rows)

    sizes = {reader.weight: size(reader, False) for reader in readers}
    mixed: set[str] = set()
    for reader in sorted(readers, key=lambda each: sizes[each.weight], reverse=True):
        if sum(sizes.values()) > memory_gb * GIB and reader.taps > 1:
            sizes[reader.weight] = size(reader, True)
            mixed.add(reader.weight)
    left = []
    for reader in sorted(readers, key=lambda each: sizes[each.weight], reverse=True):
        if sum(sizes.values()) > memory_gb * GIB:
            wanted = math.ceil(sum(sizes.values()) / GIB)
            log.info("refit: %s stays as it is; refit.memory_gb=%d would be enough for it", reader.weight, wanted)
            del sizes[reader.weight]
            left.append(reader)
    return [reader for reader in readers if reader.weight in sizes], mixed - {each.weight for each in left}, left


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
