"""The pruned network as a rewritten graph, for a `forward` that has numbers of channels in it.

The traced program holds every such number as a constant, and the labels say what each must become: a view's sizes, a
slice's ends, a split's sizes, a padding, a convolution's groups. `resize.py` has a rule for each of them.
"""

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import reduce_graph_module
from torch.utils import _pytree as pytree

from gnnrl_lightning.core.inputs import arguments_by_name
from gnnrl_lightning.pruning.compare import probes, uneven
from gnnrl_lightning.pruning.program import cut, evaluate, folded_tensors, tensors_of
from gnnrl_lightning.pruning.resize import RULES
from gnnrl_lightning.pruning.sizes import fault_at_another_size, follow_sizes
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.label_vectors import spread
from gnnrl_lightning.topology.program import SIZE, Program
from gnnrl_lightning.topology.values import Parameter

ORIGIN = "gnnrl_lightning.origin"
"""In a node's `meta`: the name of the traced operation that it stands for."""


def rewrite(
    model: nn.Module, topology: Topology, kept: Sequence[Sequence[int]], values: Mapping[str, Tensor] | None = None
) -> "RewrittenModule":
    """Returns a smaller network as a `GraphModule` that computes what the traced program does.

    It trains, saves, loads and exports like any other, and takes any batch size that the original takes. Parameters
    keep their names; BatchNorm and dropout are modules and follow `train()` and `eval()`. It takes images of any size
    that the original takes, or raises an AssertionError that says why it cannot. What the trace in eval mode
    does not show, such as stochastic depth, is gone, and so are regions with an autocast of their own.

    Args:
        model: The network that `topology` was traced from; unchanged.
        topology: Where the channels of each group lie.
        kept: The channels that stay, one list a group.
        values: Full-size tensors to cut in place of the model's own or of folded ones, by name, such as `refit` gives.
    """
    if topology.program.fixed is None:
        follow_sizes(topology)
        if not topology.program.fixed:
            probe, some = next(probes(model, topology)), uneven(topology)
            trial = Rewriter(probe, topology, topology.keep_mask(some), {}).run()
            topology.program.fixed = fault_at_another_size(topology, probe, trial, some)
    network = Rewriter(model, topology, topology.keep_mask(kept), values or {}).run()
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in network.named_modules():
        module.training = modes.get(name, model.training)
    return network.to(next(model.parameters()).device)


class RewrittenModule(fx.GraphModule):
    """A network from `rewrite`: what it is outlasts copies and pickles."""

    def __reduce__(self) -> tuple[Any, ...]:
        _, arguments = super().__reduce__()
        return _unpickled, arguments


def _unpickled(body: dict[str, Any], imports: str) -> RewrittenModule:
    plain = reduce_graph_module(body, imports)
    assert isinstance(plain, fx.GraphModule)
    return RewrittenModule(plain, plain.graph, class_name=type(plain).__name__)


def is_rewritten(network: nn.Module) -> bool:
    """Whether a network comes from `rewrite`."""
    return isinstance(network, RewrittenModule)


class Rewriter:
    """Copies a program node by node.

    Args:
        model: The network with its tensors.
        topology: Its program and labels.
        mask: Which slots stay, [slots].
        values: Tensors in place of the network's own, by name.
    """

    def __init__(self, model: nn.Module, topology: Topology, mask: Tensor, values: Mapping[str, Tensor]):
        self.model, self.topology, self.mask = model, topology, mask
        self.program = topology.program
        self.tensors = tensors_of(model)
        self._example = arguments_by_name(model, self.program.example)
        self.values = values
        self._folded = folded_tensors(model, topology)
        labels = topology.labels
        self._folds = {
            node: name for name in self._folded for node in (labels.folded[name], *labels.repeats.get(name, ()))
        }
        self._sized = self.program.sized
        self._constants = self._needed_constants()
        self._root: dict[str, Any] = {}
        self._graph = fx.Graph()
        self._new: dict[fx.Node, Any] = {}

    def run(self) -> RewrittenModule:
        """The network."""
        self._inputs = dict(zip(self.program.inputs, self._leaves(), strict=True))
        if self.program.fixed:
            self._require_size(self.program.fixed)
        for node in self.program.graph.nodes:
            if node.op == "output":
                flat = [self.argument(leaf) for leaf in pytree.tree_leaves(node.args)]
                self._graph.output(pytree.tree_unflatten(flat, self.program.structure))
            else:
                made = len(self._graph.nodes)
                self._new[node] = self._node(node)
                for new in islice(reversed(self._graph.nodes), len(self._graph.nodes) - made):
                    new.meta[ORIGIN] = node.name
        self._graph.eliminate_dead_code(lambda node: node.op != "call_module" and node.is_impure())
        return RewrittenModule(self._root, self._graph, class_name=type(self.model).__name__)

    def _require_size(self, reason: str) -> None:
        leaves = pytree.tree_leaves(tuple(self._example.values()))
        for name, value in zip(self.program.inputs, leaves, strict=True):
            if isinstance(value, Tensor) and value.dim() > 2:
                size = tuple(value.shape[2:])
                shape = self._graph.call_function(getattr, (self._inputs[name], "shape"))
                given = self._graph.call_function(operator.getitem, (shape, slice(2, None)))
                same = self._graph.call_function(operator.eq, (given, size))
                wanted = "×".join(map(str, size))
                said = f"this network takes {wanted} alone, the size that it was traced with: {reason}"
                self._graph.call_function(torch._assert, (same, said))

    def _node(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if (fold := self._folds.get(node)) is not None:
            return self._fold(fold)
        if SIZE in node.meta and self.program.fixed:
            return node.meta["val"]
        if node.name in self.topology.labels.constants and node not in self._sized:
            return self.attribute(node.name, self._constants[node]) if node in self._constants else None
        rule = RULES.get(Program.operation(node))
        new = rule(self, node) if rule and isinstance(self.labels(node.args[0]), Tensor) else None
        return self.copy(node) if new is None else new

    def _fold(self, name: str) -> fx.Node:
        """A tensor that was computed from parameters is one; what computed it again reads the same."""
        labels = self.topology.labels
        path = ".".join(filter(None, (Program.module_path(labels.folded[name]), name)))
        if path in self._root:
            return self._graph.get_attr(path)
        value = cut(self.values.get(name, self._folded[name]), name, self.topology, self.mask).detach().clone()
        sources = [self.tensors[source] for source in labels.sources(name)]
        if any(isinstance(source, nn.Parameter) for source in sources):
            value = nn.Parameter(value, any(source.requires_grad for source in sources))
        return self.attribute(path, value)

    def _needed_constants(self) -> dict[fx.Node, Any]:
        """Values that depend on nothing: kept as buffers, which move to a GPU with the network."""
        names, nodes = self.topology.labels.constants, self.program.graph.nodes
        constants = {node for node in nodes if node.name in names and node not in self._sized}
        made = [n for n in nodes if n in constants and n.op == "call_function" and set(n.users) - constants]
        return dict(zip(made, evaluate(made, {}, self.program), strict=True))

    def _placeholder(self, node: fx.Node) -> fx.Node:
        if node.name in self.program.constants:
            return self.attribute(node.name, self.program.constants[node.name].clone())
        if node.name in self._inputs:
            return self._inputs[node.name]
        name = self.program.state[node.name]
        return self.attribute(name, self.pruned(name))

    def pruned(self, name: str) -> Tensor:
        """A parameter or buffer without the removed channels."""
        original = self.tensors[name]
        value = cut(self.values.get(name, original).detach(), name, self.topology, self.mask).clone()
        return nn.Parameter(value, original.requires_grad) if isinstance(original, nn.Parameter) else value

    def attribute(self, name: str, value: Any) -> fx.Node:
        """A tensor of the new network."""
        self._root[name] = value
        return self._graph.get_attr(name)

    def module(self, name: str, make: Callable[[], nn.Module], node: fx.Node) -> fx.Node:
        """A module of the new network in place of an operation on one activation; shared modules are made once."""
        if name not in self._root:
            self._root[name] = make()
        return self._graph.call_module(name, (self.argument(node.args[0]),))

    def argument(self, argument: Any) -> Any:
        """An argument of the program as one of the new graph."""
        return fx.node.map_arg(argument, self._new.__getitem__)

    def copy(self, node: fx.Node, *changed: Any) -> fx.Node:
        """The same operation on the new operands; `changed` replaces the arguments behind the first."""
        args: Any = node.args
        rest = [self.argument(argument) for argument in args[1 + len(changed) :]]
        return self.call(node.target, [self.argument(args[0]), *changed, *rest], self.argument(node.kwargs))

    def call(self, target: Any, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> fx.Node:
        """An operation of the new graph; what it makes lies where the network's input does, not that of the trace."""

        def placed(value: Any) -> Any:
            return self._device_of_input() if isinstance(value, torch.device) else value

        return self._graph.call_function(target, *pytree.tree_map(placed, (tuple(args), kwargs or {})))

    def _device_of_input(self) -> fx.Node:
        values = zip(self.program.inputs, pytree.tree_leaves(tuple(self._example.values())), strict=True)
        image = next(self._inputs[name] for name, value in values if isinstance(value, Tensor))
        return self._graph.call_function(getattr, (image, "device"))

    def _leaves(self) -> Iterator[fx.Node]:
        """Arguments as the model's `forward` takes them, and in these the leaves of the inputs, in order."""
        parameters = inspect.signature(self.model.forward).parameters
        for name, value in self._example.items():
            kind, default = parameters[name].kind, parameters[name].default
            stars = {kind.VAR_POSITIONAL: "*", kind.VAR_KEYWORD: "**"}.get(kind, "")
            if default is inspect.Parameter.empty and kind is kind.KEYWORD_ONLY:
                default = None  # arguments without one may not follow those with one
            argument = self._graph.placeholder(stars + name, default_value=default)
            for path, _ in pytree.tree_flatten_with_path(value)[0]:
                leaf = argument
                for key in path:
                    if isinstance(key, pytree.GetAttrKey):
                        leaf = self._graph.call_function(getattr, (leaf, key.name))
                    else:
                        place = key.idx if isinstance(key, pytree.SequenceKey) else key.key  # type: ignore[attr-defined]
                        leaf = self._graph.call_function(operator.getitem, (leaf, place))
                yield leaf

    def labels(self, node: Any) -> Any:
        """Labels of an operation's result, or of each of its results; None where it has no channels."""
        value = self.topology.labels.outputs.get(node.name) if isinstance(node, fx.Node) else None
        return self._elements(value) if isinstance(value, Parameter) else value

    def stay(self, labels: Tensor, dimension: int) -> Tensor:
        """Which positions along a dimension stay, [positions]."""
        return self.topology.positions(labels, dimension, self.mask)

    def count(self, labels: Tensor, dimension: int) -> int:
        """How many positions along a dimension stay."""
        return int(self.stay(labels, dimension).sum())

    def _elements(self, parameter: Parameter) -> Tensor | None:
        """Labels of the elements of a parameter with channels along one dimension, where they lie now."""
        shape = self.topology.labels.shapes[parameter.name]
        slots = {d: self.topology.slots.get((parameter.name, d)) for d in range(len(shape))}
        wide = [d for d, vector in slots.items() if vector is not None and bool((vector >= 0).any())]
        if len(wide) != 1:
            return None
        vector = self.topology.labels.dimensions[parameter.name, wide[0]]
        return spread(vector, shape, wide[0]).reshape(-1)[parameter.index]
