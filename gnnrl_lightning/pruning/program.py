"""Runs a traced network with a model's tensors: whole, in part, or without the channels that a plan removes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.core.inputs import Inputs
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.program import SIZE, Program
from gnnrl_lightning.topology.values import Parameter

Layer = Callable[[Tensor], Any]
"""An operation as a function of the activation whose channels it reads."""
Read = Callable[[fx.Node, Tensor, Layer], Any]
"""Computes an operation that reads channels: its node, the activation that they are of, and the operation itself."""
Restricted = Callable[[fx.Node, Mapping[fx.Node, Any]], Tensor]
"""Computes an operation that normalises or reduces over channels: its node, and the results so far."""


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a shared one has the first of its names, as in the trace."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def folded_tensors(model: nn.Module, topology: Topology) -> dict[str, Tensor]:
    """Values of what the network computes from parameters alone and plans cut, e.g. standardised weights."""
    wanted = [node for name, node in topology.labels.folded.items() if name in topology.folds]
    sources = topology.program.tensors(topology.program.upstream(wanted))
    device = next(model.parameters()).device
    # Where the trace is, which may have made tensors of its own there.
    tensors = {name: value.cpu() for name, value in tensors_of(model).items() if name in sources}
    values = evaluate(wanted, tensors, topology.program)
    return {node.name: value.to(device) for node, value in zip(wanted, values, strict=True)}


def evaluate(nodes: list[fx.Node], tensors: Mapping[str, Tensor], program: Program) -> list[Any]:
    """Results of operations that depend on no input.

    Args:
        nodes: The operations.
        tensors: Parameters and buffers by name.
        program: The network that they are part of.
    """
    values: dict[fx.Node, Any] = {}
    wanted = program.upstream(nodes)
    with torch.no_grad():
        for node in program.graph.nodes:
            if node in wanted:
                values[node] = _result(node, values, tensors, program)
    return [values[node] for node in nodes]


def run(
    tensors: Mapping[str, Tensor],
    topology: Topology,
    inputs: Inputs,
    read: Read | None = None,
    restricted: Restricted | None = None,
) -> list[Any]:
    """Runs a network, and lets the caller have a hand in whatever reads channels.

    Args:
        tensors: Parameters and buffers by name, where the inputs are.
        topology: The network.
        inputs: A batch of inputs.
        read: Computes every operation that reads channels; None: as it is.
        restricted: Computes those that normalise or reduce over channels; None: they see all of them.

    Returns:
        The network's outputs, flat.
    """
    walk = Walk(tensors, topology, inputs)
    for node in topology.program.graph.nodes:
        if node.op == "output":
            return [walk.values[x] if isinstance(x, fx.Node) else x for x in pytree.tree_leaves(node.args)]
        walk.step(node, read, restricted)
    raise AssertionError("a program ends with its outputs")


class Walk:
    """A network that is run operation by operation.

    Args:
        tensors: Parameters and buffers by name, where the inputs are; folded tensors too, where they are not to be
            computed.
        topology: The network.
        inputs: A batch of inputs.

    Attributes:
        values: Results of the operations so far, as long as a later one needs them.
    """

    def __init__(self, tensors: Mapping[str, Tensor], topology: Topology, inputs: Inputs):
        self.topology, self.feed = topology, topology.program.feed(inputs)
        parameters = topology.program.parameters
        # A forward may count in its buffers: in copies, not in the model's own.
        self._tensors = {name: value if name in parameters else value.clone() for name, value in tensors.items()}
        self.values: dict[fx.Node, Any] = {}
        self._last_use = {source: node for node in topology.program.graph.nodes for source in node.all_input_nodes}

    def step(self, node: fx.Node, read: Read | None = None, restricted: Restricted | None = None) -> None:
        """Computes one operation, the next in the program's order; see `run`."""
        labels, values = self.topology.labels, self.values
        if read is not None and self.reads(node):
            source = node.all_input_nodes[0]

            def layer(x: Tensor) -> Any:
                # What it is given as a value of its own: others may read the same activation.
                return self._result(node, {**values, source: x})

            values[node] = read(node, values[source], layer)
        elif restricted is not None and node.name in labels.restricted:
            values[node] = restricted(node, values)
        elif (
            isinstance(fold := labels.outputs.get(node.name), Parameter)
            and fold.name in labels.folded
            and (fold.name in self._tensors and fold.moved is None)
        ):
            values[node] = self._tensors[fold.name]
        else:
            values[node] = self._result(node, values)
        for source in node.all_input_nodes:
            if self._last_use[source] is node:
                del values[source]

    def reads(self, node: fx.Node) -> bool:
        """Whether an operation sums over channels of an activation."""
        labels = self.topology.labels
        return node.name in labels.reads and isinstance(labels.outputs[node.all_input_nodes[0].name], Tensor)

    def _result(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        return _result(node, values, self._tensors, self.topology.program, self.feed)


@torch.no_grad()
def masked_output(tensors: Mapping[str, Tensor], topology: Topology, mask: Tensor, inputs: Inputs) -> list[Any]:
    """What a network must compute without some of its channels: whatever reads them sees zeros in their place.

    Args:
        tensors: Parameters and buffers by name.
        topology: The network.
        mask: Which slots stay, [slots].
        inputs: A batch of inputs.

    Returns:
        The network's outputs, flat.
    """
    return run(tensors, topology, inputs, *masked(topology, mask))


def masked(topology: Topology, mask: Tensor) -> tuple[Read, Restricted]:
    """How to run a network without some of its channels, all sizes as they are.

    Args:
        topology: The network.
        mask: Which slots stay, [slots].
    """

    def read(node: fx.Node, activation: Tensor, layer: Layer) -> Any:
        labels = topology.labels.outputs[node.all_input_nodes[0].name]
        return layer(activation * topology.stays(labels, mask).to(activation))

    def restricted(node: fx.Node, values: Mapping[fx.Node, Any]) -> Tensor:
        return _restricted(node, values, topology, mask)

    return read, restricted


def _restricted(node: Any, values: Mapping[fx.Node, Any], topology: Topology, mask: Tensor) -> Tensor:
    """An operation over channels on those alone that stay; its result is as wide as before, zero where they do not."""
    source, dim = node.args[0], topology.labels.restricted[node.name]
    stays = topology.positions(topology.labels.outputs[source.name], dim, mask)
    index = stays.nonzero().flatten()

    def left(argument: Any) -> Any:
        if argument is source:
            return values[argument].index_select(dim, index)
        if isinstance(argument, fx.Node) and Program.operation(node) in {"layer_norm", "rms_norm", "group_norm"}:
            return values[argument].index_select(0, index)  # its weight or bias
        return fx.node.map_arg(argument, values.__getitem__)

    args = [left(argument) for argument in node.args]
    if Program.operation(node) in {"layer_norm", "rms_norm"}:
        args[1] = [len(index)]
    result = node.target(*args, **{name: left(argument) for name, argument in node.kwargs.items()})
    if Program.shape(node) != Program.shape(source):
        return result
    whole = torch.zeros_like(values[source])
    return whole.index_copy_(dim, index, result)


def _result(
    node: Any,
    values: Mapping[fx.Node, Any],
    tensors: Mapping[str, Tensor],
    program: Program,
    feed: Mapping[str, Any] | None = None,
) -> Any:
    if node.op == "placeholder":
        if node.name in program.state:
            return tensors[program.state[node.name]]
        if node.name in program.constants:
            constant = program.constants[node.name]
            return constant if feed is None else constant.to(_device(feed))
        assert feed is not None
        value = feed[node.name]
        return value.clone() if isinstance(value, Tensor) else value  # operations in place are part of programs
    if SIZE in node.meta and program.fixed:
        return node.meta["val"]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    assert callable(node.target)
    if Program.operation(node) == "sym_size":
        return args[0].shape[args[1]]  # also under vmap, which does not know the operation
    if feed is not None:  # what is made lies where the inputs do, not where the trace was
        device = _device(feed)
        args, kwargs = pytree.tree_map(lambda x: device if isinstance(x, torch.device) else x, (args, kwargs))
    return node.target(*args, **kwargs)


def _device(feed: Mapping[str, Any]) -> torch.device:
    return next(value.device for value in feed.values() if isinstance(value, Tensor))


def cut(tensor: Tensor, name: str, topology: Topology, mask: Tensor) -> Tensor:
    """A parameter, buffer or folded tensor without the positions of removed channels; the tensor itself if all stay.

    Args:
        tensor: Its value.
        name: Its name in `topology.slots`.
        topology: Where the channels of each group lie.
        mask: Which slots stay, [slots].
    """
    before = tensor
    for dimension in range(tensor.dim()):
        slots = topology.slots.get((name, dimension))
        if slots is None:
            continue
        stays = (slots < 0) | mask[slots]
        if stays.all():
            continue
        if stays.dim() == 1:
            tensor = tensor.index_select(dimension, stays.nonzero().flatten().to(tensor.device))
        else:  # the weight of a grouped convolution: each block of its rows reads channels of its own
            blocks = zip(tensor.chunk(len(stays)), stays, strict=True)
            tensor = torch.cat([rows.index_select(1, row.nonzero().flatten().to(rows.device)) for rows, row in blocks])
    return _laid_out_as(before, tensor)


def _laid_out_as(before: Tensor, tensor: Tensor) -> Tensor:
    """A smaller tensor with channels last in memory where those of the larger one are."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(before.dim())
    moved = last is not None and before.is_contiguous(memory_format=last) and not before.is_contiguous()
    return tensor.contiguous(memory_format=last) if moved and last is not None else tensor
