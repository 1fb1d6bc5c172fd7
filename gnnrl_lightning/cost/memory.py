"""Cost in peak memory of a forward pass: weights, and the activations that are alive at once."""

from typing import Any

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import require_whole
from gnnrl_lightning.core.inputs import laid_out, repeated
from gnnrl_lightning.core.layout import to_fastest_layout
from gnnrl_lightning.cost.lifetimes import Activation, activations
from gnnrl_lightning.pruning.rewrite import is_rewritten, rewrite
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.closed_form import Count, Products


class Memory:
    """Most bytes that a forward pass holds at a time, the images not counted.

    In closed form: the network is run once to learn when each activation comes and goes; how large it is follows the
    widths. On a CPU a convolution adds what its kernel works in, see `_workspace`.

    Args:
        topology: The network's groups.
        network: It, as it is going to be pruned: the model or its rewritten graph.
        device: Where it will run.
        batch_size: Images of the forward pass.

    Raises:
        UserError: If the batch size is no whole number above 0.
    """

    name = "memory"
    unit = "MB"
    measured_as = "peak_bytes"

    def __init__(self, topology: Topology, network: nn.Module, device: torch.device, batch_size: int):
        require_whole("cost.batch_size", batch_size, 1)
        self.batch_size = batch_size
        program = topology.program
        images = min(batch_size, 2)  # one image alone is computed by other kernels; of more, memory is a multiple
        found = _run(topology, network, images)
        held: list[tuple[float, list[Count]]] = []
        moments: list[tuple[int, int | None]] = []  # from one kernel call to before another
        for each in found:
            held.append(_size(topology, each, batch_size / images))
            moments.append((each.born, each.freed))
            space = _workspace(topology, each) if device.type == "cpu" else None
            if space is not None:
                held.append(space)
                moments.append((each.born, each.born + 1))
        alive = torch.zeros(max(each.born for each in found) + 1, len(held), dtype=torch.bool)
        for index, (first, end) in enumerate(moments):
            alive[first:end, index] = True
        groups = len(topology.groups)
        self._alive = _largest(alive).double()  # [moments, held]
        self._held = Products([factor for factor, _ in held], [counts for _, counts in held], groups)
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        names = [name for name in program.shapes if name in tensors]
        self._weights = Products(
            [tensors[name].element_size() for name in names], [topology.weight(name) for name in names], groups
        )

    def __call__(self, widths: Tensor) -> Tensor:
        """Cost of widths [..., G], as integers [...]."""
        peak = (self._held(widths) @ self._alive.T).amax(-1)
        return (peak + self._weights(widths).sum(-1)).round().long()


def _run(topology: Topology, network: nn.Module, count: int) -> list[Activation]:
    """The activations of `count` images, on the CPU: when they come and go is the same everywhere."""
    model = topology.program.modules[""]
    program = rewrite(model, topology, topology.all_channels()).cpu().eval()
    images = repeated(topology.program.example, count)
    network = network.cpu().eval()
    layout = to_fastest_layout(network, images)
    program.to(memory_format=layout)
    return activations(program if is_rewritten(network) else network, program, laid_out(images, layout))


def _size(topology: Topology, activation: Activation, images: float) -> tuple[float, list[Count]]:
    """An activation's bytes as a factor and counts of channels."""
    counts = topology.lengths(activation.origin) if activation.origin else []
    full = topology.full_widths()
    whole = [fixed + int(vector @ full) for fixed, vector in counts]
    return images * activation.nbytes / torch.tensor(whole, dtype=torch.float64).prod().item(), counts


def _workspace(topology: Topology, activation: Activation) -> tuple[float, list[Count]] | None:
    """Bytes that a convolution works in on a CPU, as a factor and counts of channels.

    oneDNN copies the weights into an order of its own. PyTorch's own kernel, for one small image, unfolds its input:
    each pixel of the result has its column of kernel · channels values.
    """
    node = next((node for node in topology.program.graph.nodes if node.name == activation.origin), None)
    weight: Any = node.args[1] if node is not None and activation.backend else None
    name = topology.program.state.get(getattr(weight, "name", ""))
    if name is None:
        return None
    kernel = topology.labels.shapes[name][2:].numel()
    if activation.backend == "Mkldnn":
        return 4, topology.weight(name)
    if activation.backend == "Slow2d" and kernel > 1:
        return 4 * kernel * activation.made_by[1][2:].numel(), topology.weight(name)[1:2]
    return None


def _largest(sets: Tensor) -> Tensor:
    """The sets [N, members] that are in no other: only they can be the peak."""
    sets = torch.unique(sets, dim=0).double()
    within = (sets @ sets.T) >= sets.sum(1, keepdim=True)  # [i, j]: i is in j
    return sets[within.sum(1) == 1].bool()
