"""A gate on every channel of every image, and the gradient of the loss with respect to it.

The gates lie where removed channels are missed: what reads a channel reads gate · channel. All are 1, so that the
network computes what it always does, and the gradient says what a channel is worth to the loss of each image.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gnnrl_lightning.pruning.program import Layer, run, tensors_of
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.label_vectors import distinct


def gate_gradients(model: nn.Module, topology: Topology, images: Tensor, labels: Tensor) -> Tensor:
    """∂L_n/∂m_i of every image n and slot i, [N, slots], with L_n the image's cross-entropy in eval mode.

    The gradients of all layers that read a channel are in the sum (Group Fisher, Liu et al., ICML 2021, eq. 4). Our
    reading: depth-wise convolutions have no gate, since channels run through them to the layer that sums over them, and
    neither has what normalises or reduces over channels.

    Args:
        model: The network; nothing of it changes.
        topology: Its channel groups.
        images: A batch of its input, [N, ...], on its device.
        labels: Their classes, [N].
    """
    tensors = {name: value.detach() for name, value in tensors_of(model).items()}
    slots = {name: each.to(images.device) for name, each in read_slots(topology).items()}

    def loss(image: Tensor, label: Tensor, gates: Tensor) -> Tensor:
        gates = F.pad(gates, (0, 1), value=1.0)  # the last is for slot −1, all that stays

        def read(node: fx.Node, activation: Tensor, layer: Layer) -> Any:
            return layer(activation * gates[slots[node.name]])

        scores = run(tensors, topology, image.unsqueeze(0), read)[0]
        return F.cross_entropy(scores, label.unsqueeze(0))

    gates = torch.ones(len(images), len(topology.group_of_slot), device=images.device, requires_grad=True)
    # Each image alone, as far as the program can tell: networks lay images along any dimension.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the only one that vmap knows
        losses = torch.func.vmap(loss)(images, labels, gates)
        return torch.autograd.grad(losses.sum(), gates)[0]


def mean_over_images(
    model: nn.Module, topology: Topology, batches: Iterable[tuple[Tensor, Tensor]], size: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mean over all images of `size` of the gates' gradients, [slots].

    Args:
        model: The network; nothing of it changes.
        topology: Its channel groups.
        batches: Images and their classes.
        size: What counts of each gradient: its absolute value or its square.
    """
    total, count = torch.zeros(len(topology.group_of_slot)), 0
    for images, labels in batches:
        total += size(gate_gradients(model, topology, images, labels)).sum(0).cpu()
        count += len(labels)
    return total / count


def read_slots(topology: Topology) -> dict[str, Tensor]:
    """The slots of the activation that each operation reads channels of, in its shape without copies; by its name."""
    labels = topology.labels
    sources = {
        node.name: labels.outputs[node.all_input_nodes[0].name]
        for node in topology.program.graph.nodes
        if node.name in labels.reads
    }
    return {name: topology.slots_of(distinct(x)) for name, x in sources.items() if isinstance(x, Tensor)}
