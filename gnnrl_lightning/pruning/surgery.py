"""Surgery: the network without the channels that a plan drops. One index selection per parameter dimension."""

from collections.abc import Mapping, Sequence

from torch import Tensor, fx, nn

from gnnrl_lightning.core.copies import copied
from gnnrl_lightning.pruning.program import cut
from gnnrl_lightning.pruning.rewrite import is_rewritten
from gnnrl_lightning.topology import Topology


def prune(
    model: nn.Module, topology: Topology, kept: Sequence[Sequence[int]], values: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Returns a smaller copy of a network: same class, same names, fewer channels.

    Args:
        model: The network that `topology` was traced from; unchanged.
        topology: Where the channels of each group lie.
        kept: The channels that stay, one list a group.
        values: Full-size tensors to cut in place of the model's own, by name, such as `refit` gives.
    """
    values = values or {}
    mask = topology.keep_mask(kept)
    small: dict[int, object] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        value = cut(values.get(name, tensor).detach(), name, topology, mask)
        if value.data_ptr() == tensor.data_ptr():
            value = value.clone()
        small[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    # deepcopy takes what the memo holds: every other attribute is copied, each tensor arrives already pruned.
    pruned = copied(model, small)
    if is_rewritten(pruned):  # the original was; what is pruned now is pruned by surgery
        assert isinstance(pruned, fx.GraphModule)
        pruned = fx.GraphModule(pruned, pruned.graph, class_name=type(pruned).__name__)
    modules = dict(pruned.named_modules(remove_duplicate=False))
    for size, slots in topology.sizes:
        count = int(((slots < 0) | mask[slots]).sum())
        module = modules[size.module]
        if size.position is None:
            setattr(module, size.attribute, count)
        else:
            sizes = list(getattr(module, size.attribute))
            sizes[size.position] = count
            setattr(module, size.attribute, tuple(sizes))
    return pruned
