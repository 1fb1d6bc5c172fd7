"""Reads a network as a `Program`."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.copies import copied
from gnnrl_lightning.core.inputs import (
    Inputs,
    arguments_by_name,
    changed,
    count,
    repeated,
    sorted_arguments,
    tensors_in,
)
from gnnrl_lightning.topology.program import Program


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
        twin = copied(model, {id(tensor): _on_cpu(tensor) for tensor in tensors}).eval()
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
        modules=dict(model.named_modules(remove_duplicate=False)),
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
