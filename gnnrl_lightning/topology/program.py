"""A network as a program: a flat list of tensor operations with shapes and module paths."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.core.inputs import Inputs, arguments_by_name

SIZE = "gnnrl_lightning.size"
"""In a node's `meta`: that it gives a number which follows the size of the images."""


@dataclass
class Program:
    """A network as `torch.export` sees it, in eval mode.

    Attributes:
        graph: One node an operation, in the order of execution; `meta["val"]` holds shapes.
        state: Placeholder name to the name of the parameter or buffer that it stands for.
        constants: Placeholder name to the tensor that `forward` made up: neither an input nor a parameter.
        indices: Placeholder name to the value of each tensor of integers: constants and buffers.
        shapes: Shape of every parameter and buffer, by name; a shared one has the first of its names.
        parameters: The names among them that are parameters.
        modules: The model's modules by all their paths; never changed.
        example: The inputs that it was traced with, on the CPU.
        inputs: Placeholder name of each of their leaves, in order; the leaves of the arguments in `forward`'s order.
        batch: Images in the traced shapes. The program itself takes any number of them wherever `forward` does.
        structure: How the flat results of the program make up what `forward` returns.
        fixed: Why it holds for images of the traced size alone; empty: for any; None: that is not known yet, and its
            numbers are those of the trace. See `pruning.sizes`.
    """

    graph: fx.Graph
    state: Mapping[str, str]
    constants: Mapping[str, Tensor]
    indices: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]
    parameters: frozenset[str]
    modules: Mapping[str, nn.Module]
    example: Inputs
    inputs: tuple[str, ...]
    batch: int
    structure: pytree.TreeSpec
    fixed: str | None = None

    @staticmethod
    def upstream(nodes: Iterable[fx.Node], without: Collection[fx.Node] = ()) -> set[fx.Node]:
        """These operations and all that they depend on, but for `without` and what only these depend on."""
        seen: set[fx.Node] = set()
        pending = [node for node in nodes if node not in without]
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending += [source for source in node.all_input_nodes if source not in without]
        return seen

    @staticmethod
    def downstream(nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """These operations and all that depend on them."""
        seen: set[fx.Node] = set()
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending += node.users
        return seen

    @property
    def sized(self) -> set[fx.Node]:
        """Operations that give sizes, and what depends on them; none where the program holds for one size alone."""
        return set() if self.fixed else self.downstream(node for node in self.graph.nodes if SIZE in node.meta)

    def formula(self, node: fx.Node) -> str:
        """What an operation computes, down to parameters and inputs: equal for equal computations."""
        known: dict[fx.Node, str] = {}
        needed = self.upstream([node])
        for each in self.graph.nodes:
            if each in needed:
                arguments = fx.node.map_arg((each.args, each.kwargs), known.__getitem__)
                leaf = each.op == "placeholder"
                text = self.state.get(each.name, each.name) if leaf else f"{each.target}{arguments}"
                known[each] = text if leaf else hashlib.sha256(text.encode()).hexdigest()
        return known[node]

    def tensors(self, nodes: Iterable[fx.Node]) -> set[str]:
        """Names of the parameters and buffers among operations."""
        return {self.state[node.name] for node in nodes if node.name in self.state}

    @property
    def unused(self) -> frozenset[str]:
        """Parameters that the program never reads: those of branches that only training takes, as auxiliary heads."""
        return self.parameters - self.tensors(node for node in self.graph.nodes if node.users)

    def feed(self, inputs: Inputs) -> dict[str, Any]:
        """The leaves of such inputs by placeholder name."""
        leaves = pytree.tree_leaves(tuple(arguments_by_name(self.modules[""], inputs).values()))
        return dict(zip(self.inputs, leaves, strict=True))

    def __str__(self) -> str:
        """The operations and the shapes of all parameters and buffers: equal for equal networks."""
        return f"{self.graph}\n{dict(self.shapes)}"

    @staticmethod
    def module_path(node: fx.Node) -> str:
        """Path of the innermost module whose `forward` issued this operation."""
        stack = node.meta.get("nn_module_stack") or {}
        return next(reversed(stack.values()))[0] if stack else ""

    @staticmethod
    def operation(node: fx.Node) -> str:
        """Name of the operation without its overload, e.g. `conv2d` for `aten.conv2d.default`."""
        schema = getattr(node.target, "_schema", None)
        return schema.name.split("::")[1] if schema else getattr(node.target, "__name__", str(node.target))

    @staticmethod
    def place(node: fx.Node) -> str:
        """How the user is told of this operation, e.g. `view in layer1.0.attention`."""
        path = Program.module_path(node)
        return f"{Program.operation(node)} in {path}" if path else Program.operation(node)

    @staticmethod
    def shape(node: Any) -> torch.Size:
        """Shape of the result of an operation that gives one tensor, at the traced batch."""
        return shape_of(node.meta["val"])


def shape_of(tensor: Tensor) -> torch.Size:
    """Shape of a traced tensor, at the traced batch."""
    return torch.Size(map(concrete, tensor.shape))


def concrete(value: Any) -> Any:
    """The number that a symbolic size had in the trace; anything else as it is."""
    if isinstance(value, torch.SymInt):
        hint: Any = value.node.hint
        return int(hint)
    return value
