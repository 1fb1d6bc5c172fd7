"""Reads a network as a program: a flat list of tensor operations with shapes and module paths."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class Program:
    """A network as `torch.export` sees it, in eval mode.

    Attributes:
        graph: One node an operation, in the order of execution; `meta["val"]` holds shapes.
        state: Placeholder name to the name of the parameter or buffer that it stands for.
        constants: Placeholders of tensors that `forward` made up: neither inputs nor parameters.
        shapes: Shape of every parameter and buffer, by name; a shared one has the first of its names.
        parameters: The names among them that are parameters.
        modules: The model's modules by path; never changed.
        example_shape: Shape of the input it was traced with, [N, ...].
    """

    graph: fx.Graph
    state: Mapping[str, str]
    constants: frozenset[str]
    shapes: Mapping[str, torch.Size]
    parameters: frozenset[str]
    modules: Mapping[str, nn.Module]
    example_shape: torch.Size

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
        """Shape of the result of an operation that gives one tensor."""
        return node.meta["val"].shape


def export(model: nn.Module, example_input: Tensor) -> Program:
    """Traces a network without changing it.

    Args:
        model: Any module that takes one tensor.
        example_input: A batch of inputs, [N, ...]; only its shape and type matter.

    Raises:
        ValueError: If `torch.export` cannot read the network, with its reason.
    """
    # eval() on a copy: tracing must not touch the caller's train/eval flags. Parameters are shared, not copied.
    memo = {id(t): t for t in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, memo).eval()
    try:
        with torch.no_grad():
            exported = torch.export.export(twin, (example_input,), strict=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{type(model).__name__} cannot be traced by torch.export at input shape "
            f"{tuple(example_input.shape)}: {reason}"
        ) from error
    signature = exported.graph_signature
    tensors = (*twin.named_parameters(), *twin.named_buffers())
    name_of = {id(value): name for name, value in tensors}
    aliases = (
        *twin.named_parameters(remove_duplicate=False),
        *twin.named_buffers(remove_duplicate=False),
    )
    canonical = {alias: name_of[id(value)] for alias, value in aliases}
    state = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return Program(
        graph=exported.graph,
        state={placeholder: canonical[name] for placeholder, name in state.items()},
        constants=frozenset(signature.inputs_to_lifted_tensor_constants),
        shapes={name: value.shape for name, value in tensors},
        parameters=frozenset(name for name, _ in twin.named_parameters()),
        modules=dict(model.named_modules()),
        example_shape=example_input.shape,
    )
