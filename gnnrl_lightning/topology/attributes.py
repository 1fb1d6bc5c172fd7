"""Plain numbers of modules that count channels, as `self.in_chs` of a block that is re-parameterised after training."""

import re
from collections import defaultdict

import torch
from torch import Tensor, fx, nn

from gnnrl_lightning.topology.label_vectors import compact, varies
from gnnrl_lightning.topology.labels import Labels
from gnnrl_lightning.topology.program import Program
from gnnrl_lightning.topology.values import Size

_INPUT = re.compile(r"in(put)?_?(ch|chs|channels|features|planes|dim)|num_groups|groups")
_OUTPUT = re.compile(r"out(put)?_?(ch|chs|channels|features|planes|dim)")
_EITHER = re.compile(r"(num_)?(ch|chs|channels|features|planes)|dim")


def note_attributes(labels: Labels) -> None:
    """Notes integer attributes of modules of the user's that name their input or output channels; see `Size`.

    Only what is named so and has that value: nothing that the network computes depends on them, or surgery would be
    found to be wrong.
    """
    noted = {(size.module, size.attribute) for size in labels.sizes}
    inside: dict[str, list[fx.Node]] = defaultdict(list)
    for node in labels.program.graph.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            inside[path].append(node)
    for path, nodes in inside.items():
        module = labels.program.modules.get(path)
        if module is None or type(module).__module__.startswith("torch.nn.modules"):
            continue
        given, made = _entering(labels, nodes), _channels(labels, nodes[-1])
        for attribute, value in _integers(module).items():
            vector = _counted(attribute, value, given, made)
            if vector is not None and (path, attribute) not in noted:
                labels.sizes.append(Size(path, attribute, None, vector))


def _integers(module: nn.Module) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if type(value) is int and not name.startswith("_")}


def _counted(attribute: str, value: int, given: Tensor | None, made: Tensor | None) -> Tensor | None:
    """The channels that an attribute counts; None if it does not, or nobody knows which."""
    fits = {
        side: vector for side, vector in (("in", given), ("out", made)) if vector is not None and len(vector) == value
    }
    if _INPUT.fullmatch(attribute):
        return fits.get("in")
    if _OUTPUT.fullmatch(attribute):
        return fits.get("out")
    if not _EITHER.fullmatch(attribute) or not fits:
        return None
    first, *others = fits.values()
    return first if all(torch.equal(first, other) for other in others) else None


def _entering(labels: Labels, nodes: list[fx.Node]) -> Tensor | None:
    """The channels of the activation that a module is called with."""
    inner = set(nodes)
    for node in nodes:
        for source in node.all_input_nodes:
            if source not in inner and (vector := _channels(labels, source)) is not None:
                return vector
    return None


def _channels(labels: Labels, node: fx.Node) -> Tensor | None:
    """The channels of an activation, [channels]; None where there are none, or they lie along several dimensions."""
    value = labels.outputs.get(node.name)
    if (
        node.name in labels.program.state
        or not isinstance(value, Tensor)
        or not isinstance(node.meta.get("val"), Tensor)
    ):
        return None
    wide = [d for d in range(value.dim()) if varies(value, d)]
    if len(wide) != 1:
        return None
    return compact(value).movedim(wide[0], 0).flatten(1)[:, 0].expand(Program.shape(node)[wide[0]])
