"""Channel-label propagation: which positions of which parameters stand for the same channel.

The traced program is run on integer labels instead of activations. A convolution or linear layer issues a fresh
label for every output channel and notes the labels of its inputs; operations that move data move the labels with
the same torch operation; operations that combine elements merge them. In the end every dimension of every parameter
has a label vector, and labels that were merged can only be removed together. `rules.py` runs the program.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gnnrl_lightning.topology.blocks import balanced_sets, components, merged
from gnnrl_lightning.topology.label_vectors import LOCKED, compact, fixed
from gnnrl_lightning.topology.program import Program, shape_of
from gnnrl_lightning.topology.values import Parameter, Product, Size


@dataclass
class Labels:
    """The result of propagation, and the state of it while it runs.

    Attributes:
        shapes: Shape of every parameter and buffer, and of every tensor that is folded.
        folded: Name of each tensor that the network computes from parameters alone, to the operation that gives it.
        repeats: Operations that compute a folded tensor again, by the name of the first that did.
        masked: Weights that are multiplied with buffers on their way, and these: both lose the same channels.
        unrefitted: Weights that no layer reads as they are: masked ones, or read along different dimensions.
        dimensions: (parameter, buffer or folded tensor, dimension) to its label vector, one label a position.
        readers: Weight to the dimension along which it reads its inputs; depth-wise weights read none.
        reads: The operations that sum over the channels of their first argument.
        restricted: Operations that normalise or reduce over channels, to the dimension of these in their first
            argument: in the pruned network they see those that are left.
        sizes: Module attributes that follow the labels.
        products: What the network computes, for the closed-form cost.
        blocks: Labels of the blocks of grouped convolutions, [blocks, positions] each; see `blocks.py`.
        locks: Why labels were locked: (reason, labels).
        outputs: Labels of each operation's result, by the node's name, in the result's shape; of each, if several.
        constants: Operations whose result depends on no input and no parameter.
        batched: Operations on sizes or constants whose result depends on the number of images.
    """

    program: Program
    shapes: dict[str, torch.Size]
    folded: dict[str, fx.Node] = field(default_factory=dict)
    repeats: dict[str, list[fx.Node]] = field(default_factory=dict)
    masked: list[tuple[str, str]] = field(default_factory=list)
    unrefitted: set[str] = field(default_factory=set)
    dimensions: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)
    reads: set[str] = field(default_factory=set)
    restricted: dict[str, int] = field(default_factory=dict)
    sizes: list[Size] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    blocks: list[Tensor] = field(default_factory=list)
    locks: list[tuple[str, Tensor]] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    batched: set[str] = field(default_factory=set)
    _next: int = LOCKED + 1
    _computed: dict[str, str] = field(default_factory=dict)
    _pairs: list[Tensor] = field(default_factory=list)

    def fold(self, node: fx.Node) -> Parameter:
        """Takes what is computed from parameters alone, e.g. a standardised weight, for a parameter of its own.

        It is one in the rewritten network, however often it is computed. Surgery leaves its sources whole. What is
        computed with buffers would lose them so, and stays whole.
        """
        first = self._computed.setdefault(self.program.formula(node), node.name)
        if first != node.name:
            self.repeats.setdefault(first, []).append(node)
            return Parameter(first, self.shapes[first])
        self.shapes[node.name] = Program.shape(node)
        self.folded[node.name] = node
        parameter = Parameter(node.name, self.shapes[node.name])
        tables = {self.program.state.get(index) for index in self.program.indices}  # which no training changes
        buffers = self.sources(node.name) - self.program.parameters - tables
        if buffers and self.sources(node.name) & self.program.parameters:
            self.fix(parameter, f"{Program.place(node)} computes with the buffer {min(buffers)}")
        return parameter

    def sources(self, fold: str) -> set[str]:
        """Parameters and buffers that a folded tensor is computed from."""
        return self.program.tensors(self.program.upstream([self.folded[fold]]))

    def fresh(self, count: int) -> Tensor:
        """Issues labels for new channels, [count]."""
        self._next += count
        return torch.arange(self._next - count, self._next)

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Says that channels `a` and `b` (broadcastable) can only be removed together."""
        a, b = torch.broadcast_tensors(compact(a), compact(b))
        if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
            return
        differ = a != b
        if differ.any():
            self._pairs.append(torch.stack((a[differ], b[differ])))

    def lock(self, labels: Tensor, reason: str) -> None:
        """Says that these channels must all stay."""
        labels = compact(labels).unique()
        labels = labels[labels != LOCKED]
        if labels.numel():
            self.locks.append((reason, labels))

    def tie(self, name: str, dimension: int, labels: Tensor) -> None:
        """Says that a parameter's positions along `dimension` belong to these channels."""
        known = self.dimensions.setdefault((name, dimension), labels)
        self.unite(known, labels)

    def reads_along(self, weight: Parameter, dimension: int) -> None:
        """Says that a layer reads its inputs along this dimension of a weight."""
        along = weight.at(dimension)
        if self.readers.setdefault(weight.name, along) != along or weight.order is not None:
            self.unrefitted.add(weight.name)

    def fix(self, parameter: Parameter, reason: str) -> None:
        """Says that a parameter is used in a way that has no rule: none of its dimensions may shrink."""
        for dimension, size in enumerate(self.shapes[parameter.name]):
            known = self.dimensions.get((parameter.name, dimension))
            if known is None:  # labels of its own, so that the reason is on record
                known = self.dimensions[parameter.name, dimension] = self.fresh(size)
            self.lock(known, reason)

    def tie_elements(self, parameter: Parameter, labels: Tensor, reason: str) -> None:
        """Ties a parameter that meets activations element by element, e.g. a layer scale or a position embedding.

        A dimension whose every position meets one label belongs to it; if the labels follow no dimension of the
        parameter, parameter and channels are fixed.
        """
        shape = self.shapes[parameter.name]
        if shape.numel() == 1:
            return
        index, labels = torch.broadcast_tensors(parameter.index, labels)
        index, labels = index.reshape(-1), labels.reshape(-1)
        explained = False
        for dimension, size in enumerate(shape):
            position = index // int(np.prod(shape[dimension + 1 :])) % size
            vector = torch.zeros(size, dtype=torch.long).scatter_(0, position, labels)
            follows = bool((vector[position] == labels).all())
            if follows and size > 1 and bool((vector != vector[0]).any()):
                self.tie(parameter.name, dimension, vector)
            explained |= follows
        if not explained:
            self.fix(parameter, reason)
            self.lock(labels, reason)

    def note_sizes(self, node: fx.Node, kind: type[nn.Module], **labels: Tensor | tuple[int, Tensor]) -> None:
        """Notes which attributes of an operation's module count channels, if it is of the standard kind; see `Size`.

        That is the module that issued it, or the owner of its weight: one in a slice of a list has another path.
        """
        weights = (self.program.state.get(source.name, "") for source in node.all_input_nodes)
        paths = [Program.module_path(node), *(name.rpartition(".")[0] for name in weights if "." in name)]
        path = next((path for path in paths if isinstance(self.program.modules.get(path), kind)), None)
        if path is not None:
            for attribute, value in labels.items():
                position, vector = value if isinstance(value, tuple) else (None, value)
                self.sizes.append(Size(path, attribute, position, vector))

    def united(self) -> np.ndarray:
        """The class of each label, [labels], whatever is locked."""
        pairs = torch.cat(self._pairs, 1).numpy() if self._pairs else np.empty((2, 0), dtype=np.int64)
        return components(pairs, self._next)

    def classes(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Puts labels that were united into classes.

        Returns:
            The class of each label, [labels], where all that must stay share the class of `LOCKED`; and what was
            locked: by reason, the channels as they were united before.
        """
        roots = self.united()
        locked = [(reason, np.unique(roots[labels.numpy()])) for reason, labels in self.locks]
        roots = merged(roots, [[int(roots[LOCKED]), *(int(c) for _, found in locked for c in found)]])
        while self.blocks:
            sets, rest = balanced_sets([roots[blocks.numpy()] for blocks in self.blocks], int(roots[LOCKED]))
            if not sets and not rest:
                break
            if rest:
                locked.append(("the blocks of grouped convolutions cross", np.array(rest)))
            roots = merged(roots, [*sets, [int(roots[LOCKED]), *rest]])
        channels: dict[str, np.ndarray] = {}
        for reason, found in locked:  # one a dimension of a parameter that these run through
            channels[reason] = np.union1d(channels.get(reason, found), found)
        return roots, channels


def images(state: Labels, shape: torch.Size) -> int:
    """Positions of an activation for one image."""
    return shape.numel() // state.program.batch


def along(state: Labels, labels: Tensor, dimension: int) -> Tensor:
    """One label a position of `dimension`; what lies beside each other there is united: one weight reads it."""
    columns = compact(labels).movedim(dimension, 0).flatten(1)
    state.unite(columns, columns[:, :1])
    return columns[:, 0].expand(labels.shape[dimension])


def locked(node: fx.Node) -> Any:
    """Locked labels of whatever the operation gives: one tensor or several."""
    return pytree.tree_map(lambda v: fixed(shape_of(v)), node.meta["val"])


def unknown(state: Labels, node: fx.Node, operands: Iterable[Any]) -> Any:
    """What an operation without a rule does: whatever reaches it keeps all its channels."""
    for value in operands:
        if isinstance(value, Tensor):
            state.lock(value, f"{Program.place(node)} has no rule")
        elif isinstance(value, Parameter):
            state.fix(value, f"{Program.place(node)} has no rule")
    return locked(node)
