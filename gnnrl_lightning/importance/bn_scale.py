"""Importance by the scale that BatchNorm gives a channel."""

from typing import Any

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.program import Program


class BatchNormScale:
    """|γ| of the BatchNorm layers that a channel runs through (Liu et al., "Network Slimming", ICCV 2017).

    The paper first trains with an l1 penalty on γ; here the scales are taken as they are. Our reading: each layer's are
    divided by their mean before those of a channel are averaged, as `by_filters` does.
    """

    images: int | None = 0

    def check(self, topology: Topology) -> None:
        """Before any training.

        Raises:
            UserError: If channels run through no BatchNorm layer with a scale.
        """
        scaled = torch.zeros(len(topology.group_of_slot), dtype=torch.bool)
        for name in scales(topology):
            slots = topology.slots[name, 0]
            scaled[slots[slots >= 0]] = True
        if not scaled.all():
            group = topology.groups[int(topology.group_of_slot[~scaled][0])]
            raise UserError(
                f"importance=bn_scale needs BatchNorm behind every channel, and those of {group.name} have none; take "
                f"importance=l1, or leave such layers whole with exclude=[…]."
            )

    def __call__(self, model: nn.Module, task: Task, images: Samples, labels: Tensor) -> Ranking:
        """Ranks by scale; no image is looked at."""
        topology = task.topology
        self.check(topology)  # where nobody has: without it scores would be nan
        total = torch.zeros(len(topology.group_of_slot))
        layers = torch.zeros_like(total)
        parameters = dict(model.named_parameters())
        for name in scales(topology):
            slots, scale = topology.slots[name, 0], parameters[name].detach().float().cpu().abs()
            scale = scale / scale.mean().clamp(min=torch.finfo(scale.dtype).tiny)
            owned = slots >= 0
            total.index_add_(0, slots[owned], scale[owned])
            layers.index_add_(0, slots[owned], torch.ones_like(scale[owned]))
        return Ranking(list((total / layers).split(topology.full_widths().tolist())))


def scales(topology: Topology) -> list[str]:
    """Names of the BatchNorm scales that belong to channels; a shared one once."""
    program = topology.program
    names: dict[str, None] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and Program.operation(node) == "batch_norm":
            weight: Any = node.args[1]
            name = program.state.get(getattr(weight, "name", ""))
            if name in program.parameters and (name, 0) in topology.slots:
                names[name] = None
    return list(names)
