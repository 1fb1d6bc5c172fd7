"""Runs a traced program on channel labels: one rule an operation. One without a rule locks what reaches it."""

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from gnnrl_lightning.topology import layers, movement, products
from gnnrl_lightning.topology.label_vectors import fixed, spread, varies
from gnnrl_lightning.topology.labels import Labels, along, locked, unknown
from gnnrl_lightning.topology.program import Program, concrete, shape_of
from gnnrl_lightning.topology.values import Constant, Parameter, Product

COPY = frozenset("clone contiguous detach detach_ alias to _to_copy type_as lift_fresh_copy".split())
ACTIVATION = frozenset(
    "relu relu_ relu6 hardtanh hardtanh_ leaky_relu leaky_relu_ elu elu_ selu selu_ celu gelu silu silu_ mish "
    "mish_ sigmoid sigmoid_ hardsigmoid hardsigmoid_ hardswish hardswish_ tanh tanh_ softplus softsign "
    "log_sigmoid".split()
)
COMBINE = frozenset("add add_ sub sub_ rsub mul mul_ div div_ maximum minimum where".split())
ELEMENTWISE = (
    ACTIVATION
    | COMBINE
    | frozenset(
        "dropout dropout_ feature_dropout alpha_dropout clamp clamp_ clamp_min clamp_max exp log log1p sqrt rsqrt "
        "reciprocal abs neg pow square erf addcmul addcdiv lerp "
        "zeros_like ones_like full_like".split()
    )
)
POOL = frozenset(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d upsample_linear1d upsample_trilinear3d upsample_bilinear2d upsample_bicubic2d "
    "_upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa".split()
)
EXPAND = frozenset({"expand", "expand_as"})
OUTPUT = "network output"
"""Why the channels of the network's results stay."""
FILL = frozenset("new_zeros new_ones new_full new_empty".split())
REDUCE = frozenset("mean sum amax amin var std".split())
_NUMBERS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
NORM = frozenset("linalg_vector_norm norm".split())


def propagate(program: Program) -> Labels:
    """Runs the program on labels. Network inputs and outputs are locked, and so is what no rule covers."""
    state = Labels(program, dict(program.shapes))
    values: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = _placeholder(state, program, node)
        elif node.op == "output":
            for result in pytree.tree_leaves(node.args):
                if isinstance(result, fx.Node) and isinstance(values[result], Tensor):
                    state.lock(values[result], OUTPUT)
        else:
            args = fx.node.map_arg(node.args, values.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
            values[node] = _apply(state, node, args, kwargs)
        if _depends_on_batch(state, values, node):
            state.batched.add(node.name)
        elif isinstance(values.get(node), Constant) and node.name not in state.batched:
            state.constants.add(node.name)
        state.outputs[node.name] = values.get(node)
    _tie_masks(state)
    return state


def _placeholder(state: Labels, program: Program, node: fx.Node) -> Any:
    if node.name in program.state:
        name = program.state[node.name]
        return Parameter(name, state.shapes[name])
    if not isinstance(node.meta["val"], Tensor):
        return node.meta["val"]  # an argument of another type
    shape = Program.shape(node)
    if node.name in program.constants:
        return Constant(shape)
    return fixed(shape)


def _apply(state: Labels, node: Any, args: Any, kwargs: Any) -> Any:
    """Runs one operation on label tensors for activations, `Parameter`, `Constant`, and plain values as they are.

    Returns:
        Labels of its result in the result's shape, a list of them, or what a parameter or constant became.
    """
    if node.target is operator.getitem:
        return args[0][args[1]]
    if isinstance(node.meta.get("val"), _NUMBERS):
        return concrete(node.meta["val"])
    name = Program.operation(node)
    operands = pytree.tree_leaves((args, kwargs), is_leaf=lambda v: isinstance(v, (Parameter, Constant)))
    if not any(isinstance(value, Tensor) for value in operands):
        batched = any(source.name in state.batched for source in node.all_input_nodes)
        if not batched or name not in products.LAYERS or not isinstance(args[0], Constant):
            return _without_activations(state, node, name, args, kwargs, operands)
        # Computed for every batch anew, e.g. positions that a convolution encodes: an activation like any other.
        args = [locked(node.args[0]), *args[1:]]
    if name in COPY and isinstance(args[0], Tensor):
        return args[0]
    if name in products.RULES or name in layers.RULES:
        args, kwargs = _folded(state, node.args, args), _folded(state, node.kwargs, kwargs)
    if name in products.RULES:
        return products.RULES[name](state, node, *args, **kwargs)
    if name in RULES and isinstance(args[0], Tensor):
        return RULES[name](state, node, *args, **kwargs)
    if name.endswith("_") and _strided(node.args[0]):
        # In the rewritten network a choice of channels is a copy, which leaves what it was cut from as it is.
        return unknown(state, node, [*operands, state.outputs[node.args[0].args[0].name]])
    if name in FILL:
        state.batched.add(node.name)
        return Constant(Program.shape(node))
    if name in ELEMENTWISE:
        return movement.elementwise(state, node, operands)
    if name in POOL:
        return _pool(state, node, args[0], spatial=int(name.removesuffix("_aa")[-2]))
    if name in REDUCE:
        return movement.reduce(state, node, args[0], *args[1:2], **kwargs)
    if name in NORM:
        return movement.reduce(state, node, args[0], *args[2:3])
    if name in EXPAND and all(Program.operation(user) in COMBINE for user in node.users):
        # As small as it was: it meets others as what is broadcast does, which says nothing of their channels.
        return args[0].reshape((1,) * (len(Program.shape(node)) - args[0].dim()) + tuple(args[0].shape))
    if name in movement.MOVE or name in movement.CUT:
        return movement.move(state, node, args, kwargs)
    if cost := products.counted(node):
        state.products.append(Product(node.name, cost // state.program.batch))
    return unknown(state, node, operands)


def _strided(node: Any) -> bool:
    return isinstance(node, fx.Node) and Program.operation(node) == "slice" and node.args[4:] not in ((), (1,))


def _depends_on_batch(state: Labels, values: dict[fx.Node, Any], node: fx.Node) -> bool:
    if isinstance(node.meta.get("val"), torch.SymInt):
        return True
    constant = isinstance(values.get(node), (Constant, *_NUMBERS))
    return constant and any(source.name in state.batched for source in node.all_input_nodes)


def _folded(state: Labels, nodes: Any, values: Any) -> Any:
    """A layer's operands, in which a parameter that was cut or permuted on its way is folded."""

    def whole(node: Any, value: Any) -> Any:
        if not isinstance(value, Parameter) or not isinstance(node, fx.Node):
            return value
        intact = value.moved is None or (value.shape == state.shapes[value.name] and value.moved.is_contiguous())
        if not intact and (order := _order(value, state.shapes[value.name])) is not None:
            return replace(value, order=order)
        return value if intact else state.fold(node)

    if isinstance(values, dict):
        return {name: whole(nodes[name], value) for name, value in values.items()}
    return [whole(node, value) for node, value in zip(nodes, values, strict=True)]


def _order(value: Parameter, shape: torch.Size) -> tuple[int, ...] | None:
    """Which dimension of a parameter lies where, if its dimensions have changed places; None if more has happened."""
    assert value.moved is not None
    places = sorted(range(len(value.shape)), key=lambda d: value.index.stride(d), reverse=True)
    if len(value.shape) != len(shape) or not torch.equal(
        value.index.permute(places), Parameter(value.name, shape).index
    ):
        return None
    return tuple(places.index(d) for d in range(len(places)))


def _masked(state: Labels, name: str, operands: list[Any], shape: torch.Size) -> Parameter | None:
    """A weight that is multiplied with buffers element by element, as in masked convolutions: still that weight."""
    parameters = [value for value in operands if isinstance(value, Parameter)]
    whole = [value for value in parameters if value.name in state.program.parameters and value.shape == shape]
    buffers = [value for value in parameters if value.name not in state.program.parameters]
    plain = all(value.moved is None and value.name in state.program.shapes for value in parameters)
    fitting = all(b.shape.numel() == 1 or len(b.shape) == len(shape) for b in buffers)
    if (
        name not in COMBINE
        or len(whole) != 1
        or not buffers
        or len(operands) != len(parameters)
        or not (plain and fitting)
    ):
        return None
    state.masked += [(whole[0].name, buffer.name) for buffer in buffers if buffer.shape.numel() > 1]
    state.unrefitted.add(whole[0].name)
    return whole[0]


def _tie_masks(state: Labels) -> None:
    """Buffers lose the channels of the weights that they are multiplied with."""
    for weight, buffer in state.masked:
        for d, size in enumerate(state.shapes[buffer]):
            if size > 1 and (weight, d) in state.dimensions:
                state.tie(buffer, d, state.dimensions[weight, d])


def _without_activations(state: Labels, node: fx.Node, name: str, args: Any, kwargs: Any, operands: list[Any]) -> Any:
    """Operations on parameters and constants alone: a parameter's elements are followed while they only move."""
    parameters = [value for value in operands if isinstance(value, Parameter)]
    if len(parameters) == 1 and args and parameters[0] is args[0] and parameters[0].name not in state.folded:
        if name in COPY:
            return parameters[0]
        if name in (movement.MOVE | movement.CUT) - movement.JOIN and callable(node.target):
            moved = node.target(parameters[0].index, *args[1:], **kwargs)
            return pytree.tree_map(lambda index: Parameter(parameters[0].name, index.shape, index), moved)
    if isinstance(node.meta.get("val"), Tensor) and (weight := _masked(state, name, operands, Program.shape(node))):
        return weight
    if name in products.LAYERS:
        state.products.append(Product(node.name, products.counted(node)))  # once for the whole batch
    batched = any(source.name in state.batched for source in node.all_input_nodes)
    if parameters and isinstance(node.meta.get("val"), Tensor) and not batched:
        return state.fold(node)
    for parameter in parameters:
        state.fix(parameter, f"{Program.place(node)} computes with {parameter.name}")
    as_constant = lambda v: Constant(shape_of(v)) if isinstance(v, Tensor) else v  # noqa: E731
    return pytree.tree_map(as_constant, node.meta.get("val"))


def _pool(state: Labels, node: fx.Node, x: Tensor, spatial: int) -> Any:
    dimension = x.dim() - 1 - spatial
    if any(varies(x, d) for d in range(dimension + 1, x.dim())):
        return unknown(state, node, [x])
    channels = along(state, x, dimension)
    return pytree.tree_map(lambda v: spread(channels, shape_of(v), dimension), node.meta["val"])


def _softmax(state: Labels, node: fx.Node, x: Tensor, dim: int, *_: Any) -> Tensor:
    if varies(x, dim):
        state.lock(x, f"{Program.place(node)} reduces over channels")
    return x


RULES: dict[str, Callable[..., Any]] = {
    **layers.RULES,
    **dict.fromkeys(("pad", "constant_pad_nd"), movement.pad),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax"), _softmax),
    "glu": movement.gated,
}
