"""Times of every operation of a network, measured where it runs: inside the network, at many widths."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.progress import track
from torch import Tensor, fx, nn

from gnnrl_lightning.core.inputs import Inputs, call, laid_out, tensors_in
from gnnrl_lightning.core.layout import to_fastest_layout
from gnnrl_lightning.pruning.rewrite import ORIGIN, rewrite
from gnnrl_lightning.topology import Topology

_SAMPLES = 32
_SECONDS = 0.5
"""How long one sample is measured, if that is at least `_LEAST` rounds."""
_LEAST, _MOST = 3, 12


@dataclass(frozen=True)
class Times:
    """What operations took in networks of different widths, in seconds.

    Attributes:
        operations: Names of the traced operations.
        widths: Of the samples, [S, G]; the first is the whole network.
        seconds: Of each operation in each sample, [S, operations].
        between: What the network itself takes beside its operations: Python, from module to module.
    """

    operations: list[str]
    widths: Tensor
    seconds: Tensor
    between: float


@torch.no_grad()
def measure(topology: Topology, network: nn.Module, images: Inputs) -> Times:
    """Measures the operations of the whole network and of 31 pruned ones.

    Each sample is measured in turns with the whole network, and its times are scaled by what that took just then: a
    machine that is shared is sometimes slower.

    Args:
        topology: The network's groups.
        network: It, as it is going to be pruned: the model or its rewritten graph.
        images: A batch, on the device that is measured.
    """
    layout = to_fastest_layout(network.to(tensors_in(images)[0].device).eval(), images)
    images = laid_out(images, layout)
    whole, operations = _instrumented(topology, topology.full_widths(), images, layout)
    clock = _Clock(images)
    for _ in range(2):
        call(network, images)
        clock.laps(whole)
    started = time.perf_counter()
    clock.laps(whole)
    rounds = min(_MOST, max(_LEAST, int(_SECONDS / 2 / (time.perf_counter() - started))))
    sampled = _samples(topology)
    reference, seconds, between = [], [], []
    for widths in track(sampled, "measuring operations", transient=True):
        sample, _ = _instrumented(topology, widths, images, layout)
        clock.laps(sample)
        turns = [(clock.laps(whole), clock.laps(sample), clock.total(network)) for _ in range(rounds)]
        reference.append(torch.tensor([lap for lap, _, _ in turns], dtype=torch.float64).median(0).values)
        seconds.append(torch.tensor([lap for _, lap, _ in turns], dtype=torch.float64).median(0).values)
        between.append(statistics.median(total - sum(lap) for lap, _, total in turns))
    of_whole = torch.stack(reference)
    usual = of_whole.sum(1).median()
    scale = (usual / of_whole.sum(1)).unsqueeze(1)
    return Times(
        operations,
        torch.stack([topology.full_widths(), *sampled]),
        torch.cat([(of_whole * scale).median(0).values.unsqueeze(0), torch.stack(seconds) * scale]),
        max(0.0, statistics.median(between)),
    )


class _Clock:
    """Reads the time between the operations of an instrumented network."""

    def __init__(self, images: Inputs):
        self.images, self.device = images, tensors_in(images)[0].device

    def laps(self, network: fx.GraphModule) -> list[float]:
        """Seconds of each operation, what is freed after it included."""
        readings: list[float] = []
        network.tick = lambda: readings.append(self.now())  # type: ignore[assignment]
        call(network, self.images)
        return [end - start for start, end in pairwise(readings)]

    def total(self, network: nn.Module) -> float:
        """Seconds of a forward pass."""
        started = self.now()
        call(network, self.images)
        return self.now() - started

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _instrumented(
    topology: Topology, widths: Tensor, images: Inputs, layout: torch.memory_format
) -> tuple[fx.GraphModule, list[str]]:
    """The pruned network as a graph that calls `tick` before every operation and at the end, and the operations."""
    model = topology.program.modules[""]
    network = rewrite(model, topology, [range(width) for width in widths.tolist()]).eval()
    network.to(tensors_in(images)[0].device).to(memory_format=layout)
    graph, operations = network.graph, []
    for node in list(graph.nodes):
        if node.op in {"call_function", "call_module"}:
            operations.append(node.meta[ORIGIN])
        elif node.op != "output":
            continue
        with graph.inserting_before(node):
            graph.create_node("call_module", "tick")
    network.recompile()
    return network, operations


def _samples(topology: Topology) -> Sequence[Tensor]:
    """Widths that show each operation narrow and wide, and each beside narrow and wide neighbours."""
    generator = torch.Generator().manual_seed(0)
    full, least = topology.full_widths(), topology.min_widths()
    divisors = torch.tensor([group.divisor for group in topology.groups])
    samples = []
    for index in range(1, _SAMPLES):
        kept = torch.rand(len(full), generator=generator)
        if index % 3 == 0:  # all alike
            kept = torch.full_like(kept, 1 - index / _SAMPLES)
        elif index % 3 == 1:  # half of them whole
            kept = torch.where(torch.rand(len(full), generator=generator) < 0.5, kept, 1.0)
        widths = (kept * full / divisors).round().long() * divisors
        samples.append(torch.where(kept >= 1, full, torch.maximum(widths, least)))
    return samples
