"""Rules of the graph rewrite: what the numbers in an operation become once its channels are fewer.

A rule gives the new node, or None where the operation can be copied as it is.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from gnnrl_lightning.topology.label_vectors import varies
from gnnrl_lightning.topology.program import Program

if TYPE_CHECKING:
    from gnnrl_lightning.pruning.rewrite import Rewriter

_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_LEAVES = ("weight", "bias", "running_mean", "running_var")
_DROPOUTS = {"dropout": nn.Dropout, "feature_dropout": nn.Dropout2d, "alpha_dropout": nn.AlphaDropout}


def _arguments(node: fx.Node, *names: str) -> list[Any]:
    """Arguments behind the first, by position or by name; None where neither is given."""
    given = dict(zip(names, node.args[1:], strict=False))
    return [given.get(name, node.kwargs.get(name)) for name in names]


def _sizes(to: "Rewriter", labels: Tensor, sizes: Sequence[Any], first: int = 0) -> list[Any]:
    """Sizes of a reshape's result from the labels of that result; what does not hold channels stays."""

    def resized(size: Any, dimension: int) -> Any:
        if size == -1 or not varies(labels, dimension):
            return to.argument(size)
        # A size that is computed from the batch's holds images and channels in one dimension.
        return -1 if isinstance(size, fx.Node) else to.count(labels, dimension)

    return [resized(size, first + i) for i, size in enumerate(sizes)]


def _view(to: "Rewriter", node: fx.Node) -> fx.Node:
    (sizes,) = _arguments(node, "size")
    return to.copy(node, _sizes(to, to.labels(node), sizes))


def _unflatten(to: "Rewriter", node: fx.Node) -> fx.Node:
    dim, sizes = _arguments(node, "dim", "sizes")
    dim %= len(Program.shape(node.args[0]))
    return to.copy(node, dim, _sizes(to, to.labels(node), sizes, dim))


def _expand(to: "Rewriter", node: fx.Node) -> Any:
    if to.labels(node).shape != Program.shape(node):  # whoever reads it broadcasts
        return to.argument(node.args[0])
    (sizes,) = _arguments(node, "size")
    labels = to.labels(node.args[0])
    labels = labels.reshape((1,) * (len(sizes) - labels.dim()) + tuple(labels.shape))
    return to.copy(node, _sizes(to, labels, sizes))


def _pad(to: "Rewriter", node: fx.Node) -> fx.Node:
    (pad,) = _arguments(node, "pad")
    labels, pad = to.labels(node), list(pad)
    for i in range(len(pad) // 2):
        d = labels.dim() - 1 - i
        if varies(labels, d):
            stay = to.stay(labels, d)
            left, right = pad[2 * i : 2 * i + 2]
            pad[2 * i : 2 * i + 2] = [int(stay[:left].sum()), int(stay[len(stay) - right :].sum())]
    return to.copy(node, pad)


def _choose(to: "Rewriter", node: fx.Node) -> fx.Node | None:
    """A slice, or any other choice of positions along one dimension."""
    dim = _arguments(node, "dim")[0] or 0
    source = to.labels(node.args[0])
    if not varies(source, dim):
        return None
    stay, target = to.stay(source, dim), node.target
    assert callable(target)
    rest = {name: value for name, value in node.kwargs.items() if name != "dim"}
    chosen = target(torch.arange(len(stay)), 0, *node.args[2:], **rest)
    index = (stay.cumsum(0) - 1)[chosen[stay[chosen]]]
    x = to.argument(node.args[0])
    if torch.equal(index, torch.arange(len(index)) + index[:1]):
        return to.call(torch.ops.aten.narrow.default, (x, dim, int(index[:1].sum()), len(index)))
    buffer = to.attribute(f"{node.name}_index", index)
    return to.call(torch.ops.aten.index_select.default, (x, dim, buffer))


def _split(to: "Rewriter", node: fx.Node) -> fx.Node | None:
    dim = _arguments(node, "parts", "dim")[1] or 0
    if not varies(to.labels(node.args[0]), dim):
        return None
    sizes = [to.count(part, dim) for part in to.labels(node)]
    return to.call(torch.ops.aten.split_with_sizes.default, (to.argument(node.args[0]), sizes, dim))


def _convolution(to: "Rewriter", node: fx.Node) -> fx.Node | None:
    """A depth-wise convolution has as many groups as channels."""
    names = ["weight", "bias", "stride", "padding", "dilation", "groups"]
    if "transpose" in Program.operation(node):
        names[4:] = ["output_padding", "groups", "dilation"]
    given = dict(zip(names, _arguments(node, *names), strict=True))
    if (given["groups"] or 1) == 1 or Program.shape(given["weight"])[1] > 1:
        return None
    given["groups"] = to.count(to.labels(node.args[0]), 1)
    named = {name: to.argument(value) for name, value in given.items() if value is not None}
    return to.call(node.target, (to.argument(node.args[0]),), named)


def _group_norm(to: "Rewriter", node: fx.Node) -> fx.Node | None:
    one_each = node.args[1] == Program.shape(node.args[0])[1]
    return to.copy(node, to.count(to.labels(node.args[0]), 1)) if one_each else None


def _layer_norm(to: "Rewriter", node: fx.Node) -> fx.Node | None:
    labels = to.labels(node.args[0])
    last = labels.dim() - 1
    return to.copy(node, [to.count(labels, last)]) if varies(labels, last) else None


def _attention(to: "Rewriter", node: fx.Node) -> fx.Node:
    """Its scale comes from the number of channels that there were."""
    scale = node.kwargs.get("scale") or Program.shape(node.args[0])[-1] ** -0.5
    args = [to.argument(argument) for argument in node.args]
    return to.call(node.target, args, {**to.argument(node.kwargs), "scale": scale})


def _batch_norm(to: "Rewriter", node: Any) -> fx.Node | None:
    x, weight, bias, mean, variance, training, momentum, eps = node.args[:8]
    names = [None if t is None else to.program.state.get(t.name) for t in (weight, bias, mean, variance)]
    if training or names[2] is None or names[3] is None:
        return None  # it has no statistics of its own: always those of the batch
    owner = names[2].rpartition(".")[0]
    standard = all(name in (None, f"{owner}.{leaf}".lstrip(".")) for name, leaf in zip(names, _LEAVES, strict=True))

    def make() -> nn.Module:
        features = to.pruned(str(names[2])).numel()
        # The trace in eval mode does not show a momentum of None.
        known = getattr(to.program.modules.get(owner), "momentum", momentum)
        norm = _NORMS[len(Program.shape(x))](features, eps=eps, momentum=known, affine=False)
        for leaf, name in zip(_LEAVES, names, strict=True):
            if name is not None:
                setattr(norm, leaf, to.pruned(name))
        norm.affine = weight is not None
        counter = to.tensors.get(f"{owner}.num_batches_tracked".lstrip("."))
        norm.num_batches_tracked = None if counter is None else counter.clone()
        return norm

    return to.module(owner if standard and owner else f"{node.name}_", make, node)


def _dropout(to: "Rewriter", node: Any) -> fx.Node:
    kind = _DROPOUTS[Program.operation(node).rstrip("_")]
    return to.module(f"{node.name}_", lambda: kind(node.args[1]), node)


RULES: dict[str, Callable[["Rewriter", fx.Node], fx.Node | None]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _view),
    "unflatten": _unflatten,
    "expand": _expand,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(("slice", "narrow", "take"), _choose),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), _split),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    **dict.fromkeys(("dropout", "dropout_", "feature_dropout", "alpha_dropout"), _dropout),
}
