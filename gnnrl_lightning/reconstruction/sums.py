"""Sums over positions and images, batch by batch, and the statistics of the readers that they come to."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, fx

from gnnrl_lightning.core.inputs import Inputs, changed, count
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.pruning.program import Layer, run
from gnnrl_lightning.reconstruction.layouts import Layout
from gnnrl_lightning.reconstruction.moments import Moments, validated
from gnnrl_lightning.reconstruction.readers import Reader
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.label_vectors import distinct

_FEWEST = 2.0
"""Samples for each column below which one mix of channels for all taps is solved for."""
_LEAST_SAMPLES = 4096
"""Samples of a reader however few its columns are: of small ones they cost next to nothing."""
_SENSITIVITY_IMAGES = 128
_SKETCH = 8
"""Where a layer has very many rows, S is summed over so many random combinations of the positions of each image."""
EXACT_ROWS = _SKETCH * _SENSITIVITY_IMAGES
"""Rows of a layer up to which S is summed in full."""


class Sums:
    """Sums over positions and images that grow with every batch.

    Args:
        topology: The channel groups.
        readers: Whose statistics are taken.
        unruled: Other operations that read channels: of these only the gates.
        images: All training images.
        samples: Samples for each column of a weight.
        mixed: Weights whose moments are those of channels alone.
    """

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
            "sensitivity": zeros(reader.blocks, min(reader.rows, EXACT_ROWS), reader.rows),
            "samples": zeros(2),
        }

    def _add_sensitivity(self, reader: Reader, layout: Layout, gradient: Tensor, first: int) -> None:
        rows, total = layout.outputs(gradient.detach()).double(), self.sums[reader.weight]["sensitivity"]
        if reader.rows <= EXACT_ROWS:
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
        slots = self.topology.slots_of(distinct(labels))
        change = change.sum([d for d, size in enumerate(slots.shape) if size == 1], keepdim=True).double()
        slots = slots.expand(change.shape).flatten().to(self.device)
        owned = slots >= 0
        total = torch.zeros_like(self.gates).index_add_(0, slots[owned], change.flatten()[owned])
        self.gates += total.square()

    def finish(self, tensors: dict[str, Tensor], ranks: int) -> tuple[list[Moments], Tensor]:
        """Means over all images that these ranks have looked at: moments, one entry a reader, and gates, [slots]."""

        def reduce(value: Tensor) -> Tensor:
            if ranks > 1:
                distributed.all_reduce(value)
            return value

        looked = reduce(self.looked)
        moments = []
        for reader in self.readers:
            sums = {name: reduce(value) for name, value in self.sums.pop(reader.weight).items()}
            sensitivity = sums["sensitivity"] / looked.sqrt()
            if reader.rows <= EXACT_ROWS:
                sensitivity = _root(sums["sensitivity"] / looked)
            moments.append(self._moments(reader, sums, sensitivity, tensors[reader.weight]))
        return moments, (reduce(self.gates) / looked).cpu()

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
