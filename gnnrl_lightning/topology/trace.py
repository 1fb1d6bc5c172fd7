"""Reads a network as a program: a flat list of tensor operations with shapes and module paths."""

import copy
import io
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.inputs import (
    Inputs,
    arguments_by_name,
    changed,
    count,
    repeated,
    sorted_arguments,
    tensors_in,
)


@dataclass(frozen=True)
class Program:
    """A network as `torch.export` sees it, in eval mode.

    Attributes:
        graph: One node an operation, in the order of execution; `meta["val"]` holds shapes.
        state: Placeholder name to the name of the parameter or buffer that it stands for.
        constants: Placeholder name to the tensor that `forward` made up: neither an input nor a parameter.
        indices: Placeholder name to the value of each tensor of integers: constants and buffers.
        shapes: Shape of every parameter and buffer, by name; a shared one has the first of its names.
        parameters: The names among them that are parameters.
        modules: The model's modules by path; never changed.
        example: The inputs that it was traced with, on the CPU.
        inputs: Placeholder name of each of their leaves, in order; the leaves of the arguments in `forward`'s order.
        batch: Images in the traced shapes. The program itself takes any number of them wherever `forward` does.
        structure: How the flat results of the program make up what `forward` returns.
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


def read_program(model: nn.Module, example: Inputs) -> Program:
    """Traces a network without changing it, with a batch of any size.

    Args:
        model: Any module.
        example: A batch of inputs, see `Inputs`; of those with floating point numbers only shape and type matter.

    Raises:
        UserError: If `torch.export` cannot read the network, with its reason.
    """
    _check_example(model, example)
    example = changed(example, _on_cpu)
    # A single image would make torch.export take its batch for the constant 1.
    images = repeated(example, max(2, count(example)))
    size = count(images)
    any_batch = pytree.tree_map(
        lambda x: {0: torch.export.Dim.AUTO} if isinstance(x, Tensor) and x.dim() and len(x) == size else None,
        arguments_by_name(model, images),
    )
    args, kwargs = sorted_arguments(model, images)
    try:
        # eval() on a copy: tracing must not touch the caller's train/eval flags. On the CPU, where the trace is run to
        # check what is pruned; parameters that are there are shared, not copied.
        tensors = (*model.parameters(), *model.buffers())
        twin = copy.deepcopy(model, {id(tensor): _on_cpu(tensor) for tensor in tensors}).eval()
        with torch.no_grad(), _quiet():
            exported = torch.export.export(twin, args, kwargs, dynamic_shapes=any_batch, strict=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{type(model).__name__} cannot be traced by torch.export at input shape {_shapes(example)}: {reason}"
        ) from error
    _inline(exported.graph_module)
    signature = exported.graph_signature
    placeholders = [node.name for node in exported.graph.nodes if node.op == "placeholder"]
    named = (*twin.named_parameters(), *twin.named_buffers())
    name_of = {id(value): name for name, value in named}
    aliases = (
        *twin.named_parameters(remove_duplicate=False),
        *twin.named_buffers(remove_duplicate=False),
    )
    canonical = {alias: name_of[id(value)] for alias, value in aliases}
    state = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = {
        placeholder: exported.constants[name]
        for placeholder, name in signature.inputs_to_lifted_tensor_constants.items()
    }
    buffers = dict(twin.named_buffers(remove_duplicate=False))
    known_values = {**constants, **{key: buffers[name] for key, name in signature.inputs_to_buffers.items()}}
    return Program(
        graph=exported.graph,
        state={placeholder: canonical[name] for placeholder, name in state.items()},
        constants=constants,
        indices={name: value for name, value in known_values.items() if value.dtype == torch.long},
        shapes={name: value.shape for name, value in named},
        parameters=frozenset(name for name, _ in twin.named_parameters()),
        modules=dict(model.named_modules()),
        example=example,
        inputs=tuple(placeholders[-len(signature.user_inputs) :]),
        batch=size,
        structure=exported.call_spec.out_spec,
    )


def _check_example(model: nn.Module, example: Inputs) -> None:
    tensors = tensors_in(example)
    floating = any(each.is_floating_point() for each in tensors)
    if not floating or not any(each.dim() for each in tensors) or not count(example):
        what = f"{tensors[0].dtype} of shape {_shapes(example)}" if tensors else f"a {type(example).__name__}"
        raise UserError(
            f"the example input is {what}; it must be a batch of at least one image of floating point numbers, e.g. "
            f"torch.zeros(1, 3, 224, 224), or several: a tuple of positional or a dict of keyword arguments."
        )
    try:
        arguments_by_name(model, example)
    except TypeError as error:
        raise UserError(f"{type(model).__name__} does not take the example input: {error}.") from error


def _shapes(example: Inputs) -> str:
    return ", ".join(str(tuple(each.shape)) for each in tensors_in(example))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch prints and logs, whole graphs where an export fails; the error says what there is to say."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _on_cpu(tensor: Tensor) -> Tensor:
    if tensor.device.type in {"cpu", "meta"}:
        return tensor
    value = tensor.detach().cpu()
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def _inline(module: fx.GraphModule) -> None:
    """Puts the operations of nested graphs, such as regions without autocast, where they are called; drops checks."""
    for node in list(module.graph.nodes):
        name = Program.operation(node) if node.op == "call_function" else ""
        if name.startswith(("_assert", "sym_constrain")):
            module.graph.erase_node(node)
        if name not in {"wrap_with_autocast", "wrap_with_set_grad_enabled"}:
            continue
        place = next(i for i, argument in enumerate(node.args) if isinstance(argument, fx.Node))
        attribute, *operands = cast(list[Any], node.args[place:])
        nested = getattr(module, attribute.target)
        _inline(nested)
        inputs = [inner for inner in nested.graph.nodes if inner.op == "placeholder"]
        with module.graph.inserting_before(node):
            copied = module.graph.graph_copy(nested.graph, dict(zip(inputs, operands, strict=True)))
        results = cast(list[fx.Node], copied)
        for user in list(node.users):  # each picks one result
            index: Any = user.args[1]
            user.replace_all_uses_with(results[index])
            module.graph.erase_node(user)
        for called in (node, attribute):
            module.graph.erase_node(called)
