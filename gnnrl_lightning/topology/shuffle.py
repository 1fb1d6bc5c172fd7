"""Channel shuffles as what they are: one permutation of channels.

Networks write a shuffle as view, transpose, view. Followed operation by operation, the first view would only allow
the same channels to be kept in each of its blocks; as a whole the three put no condition on any channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from gnnrl_lightning.topology.program import Program, concrete

_STARTS = frozenset("view reshape unflatten channel_shuffle".split())
_STEPS = _STARTS | frozenset("permute transpose contiguous clone flatten".split())


def take(x: Tensor, dim: int, index: Sequence[int]) -> Tensor:
    """Entries of `x` along `dim`, in the order of `index`."""
    return x.index_select(dim, torch.tensor(index, device=x.device))


def name_indices(program: Program) -> None:
    """Replaces selections by a tensor whose values are known by `take`, in place; rewritten networks have them."""
    for node in list(program.graph.nodes):
        if node.op != "call_function" or Program.operation(node) != "index_select":
            continue
        x, dim, index = node.args
        if isinstance(index, fx.Node) and index.name in program.indices:
            with program.graph.inserting_before(node):
                new = program.graph.call_function(take, (x, dim, program.indices[index.name].tolist()))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            program.graph.erase_node(node)


def fuse_shuffles(graph: fx.Graph) -> None:
    """Replaces every chain of views and transposes that only permutes channels by one `take`, in place."""
    for node in list(graph.nodes):
        if node.op != "call_function" or Program.operation(node) not in _STARTS or not node.users:
            continue
        chain = _chain(node)
        while chain:
            order = _permutation(chain)
            if order is not None:
                _replace(graph, chain, order)
                break
            chain.pop()


def _chain(start: fx.Node) -> list[fx.Node]:
    """The steps from here on that each feed only the next."""
    chain = [start]
    while len(chain[-1].users) == 1:
        (user,) = chain[-1].users
        if user.op != "call_function" or Program.operation(user) not in _STEPS or user.args[0] is not chain[-1]:
            break
        chain.append(user)
    return chain


def _permutation(chain: list[fx.Node]) -> list[int] | None:
    """Where each channel (dimension 1) of the last step's result comes from; None if that is not all it does."""
    source = chain[0].args[0]
    assert isinstance(source, fx.Node)
    shape = Program.shape(source)
    if len(shape) < 3 or Program.shape(chain[-1]) != shape or shape.numel() == 0:
        return None
    if any(Program.shape(node)[0] != shape[0] for node in chain):
        return None  # what it does to images depends on how many there are
    before = torch.arange(shape.numel()).view(shape)
    after = before
    for node in chain:
        rest = fx.node.map_arg(node.args[1:], lambda argument: concrete(argument.meta["val"]))
        kwargs = fx.node.map_arg(node.kwargs, lambda argument: concrete(argument.meta["val"]))
        if Program.operation(node) in {"view", "reshape"}:
            after = after.reshape(Program.shape(node))
        else:
            assert callable(node.target)
            after = node.target(after, *pytree.tree_map(concrete, rest), **kwargs)
    order = after[0].flatten(1)[:, 0] // shape[2:].numel()
    if int(order.max()) >= shape[1]:
        return None  # images change places as well
    return order.tolist() if torch.equal(after, before.index_select(1, order)) else None


def _replace(graph: fx.Graph, chain: list[fx.Node], order: list[int]) -> None:
    source = chain[0].args[0]
    assert isinstance(source, fx.Node)
    copies = any(Program.operation(node) in {"clone", "contiguous"} for node in chain)
    result = source
    if order != sorted(order) or copies:
        with graph.inserting_before(chain[0]):
            # A copy that moves nothing stays one: what is behind it may be changed in place.
            if order == sorted(order):
                result = graph.call_function(torch.ops.aten.clone.default, (source,))
            else:
                result = graph.call_function(take, (source, 1, order))
        result.meta = {**chain[0].meta, "val": chain[-1].meta["val"]}
    chain[-1].replace_all_uses_with(result)
    for node in reversed(chain):
        graph.erase_node(node)
