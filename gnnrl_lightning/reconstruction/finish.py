"""Finish: a pruned network learns, from images without labels, what its layers read in the unpruned one.

The refit keeps the meaning of the channels that stay: each should still be what it is in the unpruned network. So a few
hundred steps of gradient descent make what the layers read, and the scores, those of the unpruned network on the same
augmented images, as FitNets do for one layer (Romero et al., ICLR 2015). A map has a target at each of its positions,
so that few images do; scores alone, one row an image, make a network learn these images by heart. BatchNorm keeps its
statistics.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, fx

from gnnrl_lightning.core.sgd import modes_of, restore
from gnnrl_lightning.pruning.rewrite import ORIGIN
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.label_vectors import varies

_WARM_UP = 10
_FLOOR = 0.1
"""Part of the mean variance that is added to each channel's, lest a dead one weigh without limit."""


@dataclass(frozen=True)
class Target:
    """An activation that is compared.

    Attributes:
        node: Its name in the program.
        channels: The dimension along which its channels lie.
        kept: Of each dimension that loses channels, the positions that stay.
    """

    node: str
    channels: int
    kept: tuple[tuple[int, Tensor], ...]

    def of(self, whole: Tensor) -> Tensor:
        """What stays of the unpruned network's activation."""
        for dimension, positions in self.kept:
            whole = whole.index_select(dimension, positions.to(whole.device))
        return whole


def targets(topology: Topology, mask: Tensor) -> list[Target]:
    """What the readers read, and what the network gives.

    Args:
        topology: Of the unpruned network.
        mask: Which slots stay, [slots].
    """
    graph, labels = topology.program.graph, topology.labels
    read = [node.all_input_nodes[0] for node in graph.nodes if node.name in labels.reads]
    (output,) = (node for node in graph.nodes if node.op == "output")
    found = []
    for node in dict.fromkeys([*read, *output.all_input_nodes]):  # several may read one
        vector = labels.outputs[node.name]
        if node.op == "call_function" and isinstance(vector, Tensor) and vector.dim():
            wide = [dimension for dimension in range(vector.dim()) if varies(vector, dimension)]
            kept = tuple((d, topology.positions(vector, d, mask).nonzero().flatten()) for d in wide)
            found.append(Target(node.name, wide[0] if wide else 1, kept))
    return found


def finish(
    pruned: fx.GraphModule,
    unpruned: fx.GraphModule,
    compared: list[Target],
    batches: Iterator[Sequence[Any]],
    steps: int,
    lr: float,
) -> list[float]:
    """Trains a pruned network in place on the unpruned one's activations.

    Args:
        pruned: From `rewrite`.
        unpruned: From `rewrite` with all channels; unchanged.
        compared: From `targets`.
        batches: Arguments of the networks as their graphs take them, on their device.
        steps: Steps of Adam.
        lr: Learning rate at its highest; it rises over ten steps and falls along a cosine to 0.

    Returns:
        The loss of each step: the error's share in the variance of a channel, the mean over channels and activations.
        Where one is not finite, nothing more was tried: the learning rate is too large.
    """
    modes = modes_of(pruned) + modes_of(unpruned)
    pruned.eval()  # statistics frozen, no dropout
    unpruned.eval()
    names = {target.node for target in compared}
    student, teacher = _Recorder(pruned, names), _Recorder(unpruned, names)
    optimizer = torch.optim.Adam((each for each in pruned.parameters() if each.requires_grad), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
    scales: dict[str, Tensor] = {}
    losses: list[float] = []
    try:
        with _bar() as bar, torch.enable_grad():
            task = bar.add_task("", total=steps, state="")
            for images, _ in zip(batches, range(steps), strict=False):
                with torch.no_grad():
                    teacher.run(*images)
                student.run(*images)
                loss = _loss(compared, student.seen, teacher.seen, scales)
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]):
                    break
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update(task, advance=1, state=f"error {losses[-1]:.3f} of {losses[0]:.3f}")
    finally:
        restore(modes)
    return losses


class _Recorder(fx.Interpreter):
    """Runs a rewritten network and keeps what some of its operations give."""

    def __init__(self, network: fx.GraphModule, names: set[str]):
        super().__init__(network)
        self.names = names
        self.seen: dict[str, Any] = {}

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Arguments that `forward` takes with a star come as one value."""
        if str(target).startswith("*"):
            return next(self.args_iter)
        return super().placeholder(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Also keeps the result, under the name that the operation has in the trace."""
        value = super().run_node(n)
        if n.meta.get(ORIGIN) in self.names:
            self.seen[n.meta[ORIGIN]] = value
        return value


def _loss(
    compared: list[Target], given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], scales: dict[str, Tensor]
) -> Tensor:
    """The mean relative error; what it is relative to comes from the first batch."""
    errors = []
    for target in compared:
        whole = target.of(wanted[target.node])
        if target.node not in scales:
            variance = _per_channel(whole, target.channels).var(1)
            scales[target.node] = variance + _FLOOR * variance.mean().clamp(min=torch.finfo(variance.dtype).tiny)
        squares = _per_channel((given[target.node] - whole).square(), target.channels).mean(1)
        errors.append((squares / scales[target.node]).mean())
    return torch.stack(errors).mean()


def _per_channel(x: Tensor, dimension: int) -> Tensor:
    return x.unsqueeze(0) if x.dim() == 1 else x.movedim(dimension, 0).flatten(1)


def _share(step: int, steps: int) -> float:
    """Of the highest learning rate at a step."""
    return min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / max(1, steps)))


def _bar() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    return Progress(TextColumn("finish"), *columns, TextColumn("{task.fields[state]}"), transient=True)
