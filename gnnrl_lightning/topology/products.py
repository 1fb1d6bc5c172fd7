"""Rules of matrix products: between activations, with a weight, in attention and einsum."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from gnnrl_lightning.topology.label_vectors import fixed, spread, varies
from gnnrl_lightning.topology.labels import Labels, along, images, unknown
from gnnrl_lightning.topology.program import Program, concrete, shape_of
from gnnrl_lightning.topology.values import Parameter, Product


def _matmul(state: Labels, node: fx.Node, a: Any, b: Any) -> Any:
    """A matrix product with a weight, or of two activations."""
    if isinstance(a, Tensor) and isinstance(b, Parameter) and len(b.shape) == 2:
        return _product_with_weight(state, node, a, b)
    shape, inner = Program.shape(node), Program.shape(node.args[0])[-1]
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() == b.dim() > 2:
        return _contract(state, node, a, b, shape)
    state.products.append(Product(node.name, images(state, shape) * inner))
    return unknown(state, node, [a, b])


def _einsum(state: Labels, node: Any, equation: str, tensors: list[Any], **_: Any) -> Any:
    """The matrix product that most are, in another order of the dimensions."""
    sides = equation.replace(" ", "").split("->")
    a, b = (sides[0] + ",").split(",")[:2]
    common = [x for x in sides[-1] if x in a and x in b]
    summed = [x for x in a if x in b and x not in common]
    rows, columns = [x for x in a if x not in b], [x for x in b if x not in a]
    simple = len(summed) == len(rows) == len(columns) == 1 and sides[-1:] != sides[:1]
    if simple and len(tensors) == 2 and all(isinstance(tensor, Tensor) for tensor in tensors):
        order_a, order_b = [*common, *rows, *summed], [*common, *summed, *columns]
        left, right = (
            x.permute([side.index(c) for c in order])
            for x, side, order in zip(tensors, (a, b), (order_a, order_b), strict=True)
        )
        order = [*common, *rows, *columns]
        shape = torch.Size(Program.shape(node)[sides[-1].index(letter)] for letter in order)
        return _contract(state, node, left, right, shape).permute([order.index(letter) for letter in sides[-1]])
    state.products.append(Product(node.name, counted(node) // state.program.batch))
    return unknown(state, node, tensors)


def _contract(state: Labels, node: fx.Node, a: Tensor, b: Tensor, shape: torch.Size) -> Tensor:
    """Labels of a @ b [..., n, m], for a [..., n, k] and b [..., k, m]: channels along k can only go together."""
    total = images(state, shape) * a.shape[-1]
    summed = _vary(a, -1) or _vary(b, -2)
    if (summed and (_vary(a, -2) or _vary(b, -1))) or (_vary(a, -2) and _vary(b, -1)) or _outer(a) or _outer(b):
        state.products.append(Product(node.name, total))
        unknown(state, node, [a, b])
        return fixed(shape)
    if summed:
        channels = along(state, a, -1)
        state.unite(channels, along(state, b, -2))
        state.reads.add(node.name)
        state.products.append(Product(node.name, total // a.shape[-1], channels))
        return fixed(shape)
    for operand, dimension in ((a, len(shape) - 2), (b, len(shape) - 1)):
        if varies(operand, dimension):
            channels = along(state, operand, dimension)
            state.products.append(Product(node.name, total // shape[dimension], channels))
            return spread(channels, shape, dimension)
    state.products.append(Product(node.name, total))
    return fixed(shape)


def _vary(labels: Tensor, dimension: int) -> bool:
    return varies(labels, dimension % labels.dim())


def _outer(labels: Tensor) -> bool:
    """Whether channels lie along a dimension that a product repeats over, such as heads."""
    return any(varies(labels, d) for d in range(labels.dim() - 2))


def _product_with_weight(state: Labels, node: fx.Node, x: Tensor, weight: Parameter) -> Tensor:
    inputs, outputs = along(state, x, -1), state.fresh(weight.shape[1])
    state.tie(weight.name, weight.at(0), inputs)
    state.tie(weight.name, weight.at(1), outputs)
    state.reads_along(weight, 0)
    state.reads.add(node.name)
    state.products.append(Product(node.name, images(state, x.shape[:-1]), inputs, outputs))
    return spread(outputs, Program.shape(node), x.dim() - 1)


def _attention(state: Labels, node: fx.Node, q: Any, k: Any, v: Any, *rest: Any, **named: Any) -> Any:
    """Queries and keys lose channels together; what comes out has the channels of the values."""
    queries, keys, values = (Program.shape(argument) for argument in node.args[:3])
    pairs = images(state, queries[:-1]) * keys[-2]
    operands = (q, k, v)
    if not all(isinstance(x, Tensor) and not _outer(x) and not _vary(x, -2) for x in operands):
        state.products.append(Product(node.name, pairs * (queries[-1] + values[-1])))
        return unknown(state, node, [*operands, *rest, *named.values()])
    matched, given = along(state, q, -1), along(state, v, -1)
    state.unite(matched, along(state, k, -1))
    state.reads.add(node.name)
    state.products += [Product(node.name, pairs, matched), Product(node.name, pairs, given)]
    for mask in (*rest[:1], named.get("attn_mask")):
        if isinstance(mask, Parameter):
            state.fix(mask, f"{Program.place(node)} adds {mask.name}")
    return spread(given, Program.shape(node), q.dim() - 1)


def counted(node: Any) -> int:
    """Multiply-accumulates of an operation at its traced shapes, by torch's own counter."""

    def of_shape(source: Any) -> Any:
        value = source.meta["val"]
        if not isinstance(value, Tensor):
            return concrete(value)
        return torch.empty(shape_of(value), dtype=value.dtype, device="meta")

    from torch.utils.flop_counter import FlopCounterMode  # here, because it takes a fifth of a second

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), of_shape)
    with FlopCounterMode(display=False) as counter:
        node.target(*args, **kwargs)
    return counter.get_total_flops() // 2


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
LAYERS = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul bmm mm einsum".split()
)
"""What costs even where it works on parameters alone."""
