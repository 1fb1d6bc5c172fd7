"""Sequential refit: layer after layer against the original, on what the pruned network itself reads.

`refit` solves every reader for inputs of the unpruned network of which channels are missing. In the pruned network what
is left of them is wrong too, and errors add up. Here both networks run side by side. Each reader is solved for the
pruned network's own input x̂ against what the original's output W x should be, with the solution of `refit` as the
centre of the ridge, and each BatchNorm is re-estimated as it is passed (He et al., ICCV 2017, do so with feature maps).

Where a reader's result is added to a shortcut, it also makes up for what the shortcut lacks: its target is
W x + (s − ŝ) / a, with s and ŝ the shortcut in both networks and a the scale of a BatchNorm in between.
"""

import logging
from typing import Any

import torch
from torch import Tensor, fx, nn

from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.pruning.program import Walk, masked, tensors_of
from gnnrl_lightning.reconstruction.memory import GIB
from gnnrl_lightning.reconstruction.moments import Moments, columns_at, factored, ridged, scattered
from gnnrl_lightning.reconstruction.readers import bound, tensor_name, weight_of
from gnnrl_lightning.reconstruction.refit import columns_of, refit
from gnnrl_lightning.reconstruction.statistics import Statistics
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.program import Program, shape_of

log = logging.getLogger(__name__)

RIDGE = 0.3
"""λ over G's diagonal: how much the images at hand may move a solution away from that of `refit`."""
_BATCH = 64
_SMALL_SCALE = 1e-3


@torch.no_grad()
def sequential_refit(
    model: nn.Module,
    topology: Topology,
    statistics: Statistics,
    mask: Tensor,
    images: Samples,
    samples: float,
    memory_gb: float,
) -> dict[str, Tensor]:
    """New weights, biases and BatchNorm statistics, solved from the first layer to the last.

    Args:
        model: The unpruned network; unchanged.
        topology: Its channel groups.
        statistics: Of its readers.
        mask: Which slots stay, [slots].
        images: Training images, where the model is. As many of the first are used as fit into memory.
        samples: Samples for each column of a weight, where the images have so many positions.
        memory_gb: Memory for the activations of both networks, in GiB.

    Returns:
        Full-size tensors by name, from which what goes is still to be cut.
    """
    most = int(memory_gb * GIB // (2 * _live_bytes(topology)))
    if most < len(images):
        log.info("sequential refit: refit.memory_gb=%g does for %d of %d images", memory_gb, most, len(images))
    return _Sweep(model, topology, statistics, mask, images.first(max(most, 2)), samples).run()


class _Sweep:
    def __init__(
        self,
        model: nn.Module,
        topology: Topology,
        statistics: Statistics,
        mask: Tensor,
        images: Samples,
        samples: float,
    ):
        self.topology, self.statistics, self.samples, self.images = topology, statistics, samples, len(images)
        self.mask = torch.cat([mask, mask.new_ones(1)])  # the last is for slot −1, all that stays
        self.read, self.restricted = masked(topology, mask)
        self.changed = refit(statistics, mask)
        tensors = {name: value.detach() for name, value in tensors_of(model).items()}
        batches = [images[start : start + _BATCH] for start in range(0, self.images, _BATCH)]
        self.original = [Walk(tensors, topology, batch) for batch in batches]
        self.pruned = [Walk(tensors | self.changed, topology, batch) for batch in batches]
        self.moments = {node: each for each in statistics.moments for node in each.reader.layouts}

    def run(self) -> dict[str, Tensor]:
        solved: set[str] = set()
        for node in self.topology.program.graph.nodes:
            if node.op == "output":
                break
            moments = self.moments.get(node.name)
            if moments is not None and moments.ridge is not None and moments.reader.weight not in solved:
                solved.add(moments.reader.weight)
                self._solve(node, moments)
            if Program.operation(node) == "batch_norm":
                self._re_estimate(node)
            for original, pruned in zip(self.original, self.pruned, strict=True):
                original.step(node)
                pruned.step(node, self.read, self.restricted)
        return self.changed

    def _set(self, node: Any, name: str, value: Tensor) -> None:
        """Puts a tensor in place of the one that stands at this operand."""
        self.changed[name] = value
        for walk in self.pruned:
            walk.values[node] = value

    def _solve(self, node: fx.Node, moments: Moments) -> None:
        reader = moments.reader
        layout, weight = reader.layouts[node.name], self.statistics.tensors[reader.weight]
        whole = moments.flat(layout.matrix(weight).double())
        now = moments.flat(layout.matrix(self.changed.get(reader.weight, weight)).double())
        kept = columns_of(moments, self.mask[reader.slots]).to(weight.device)
        shortcut = None if moments.mixed else self._shortcut(node)
        sums: list[Any] = [0.0] * 6
        number = 0
        for index, (original, pruned) in enumerate(zip(self.original, self.pruned, strict=True)):
            source = node.all_input_nodes[0]
            x, own = original.values[source], self._masked(pruned.values[source], source)
            generator = torch.Generator().manual_seed(index)
            wanted = int(self.samples * now.shape[-1] * len(x) / self.images) + 1
            sampled = layout.sample(x, wanted, generator)
            before, after = (moments.rows(layout.inputs(each, sampled).double()) for each in (x, own))
            after = columns_at(after, kept)
            parts: list[Any] = [after.sum(1), before.sum(1), after.mT @ after, before.mT @ after]
            if shortcut is not None:
                missing = layout.outputs(self._missing(original, pruned, *shortcut), sampled).double()
                parts += [missing.sum(1), missing.mT @ after]
            else:
                parts += [0.0, 0.0]
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
            number += after.shape[1]
        mean, before_mean, gram, across = (each / number for each in sums[:4])
        wanted_mean, products = torch.einsum("brd,bd->br", whole, before_mean), whole @ across
        if shortcut is not None:
            wanted_mean, products = wanted_mean + sums[4] / number, products + sums[5] / number
        if reader.centred:
            gram -= mean.unsqueeze(2) * mean.unsqueeze(1)
            products -= wanted_mean.unsqueeze(2) * mean.unsqueeze(1)
        base = columns_at(now, kept)
        factor = factored(ridged(gram, gram, max(RIDGE, moments.ridge or 0)))
        solution = base + torch.cholesky_solve((products - base @ gram).mT, factor).mT
        if not solution.isfinite().all():
            return
        arguments = bound(node)
        matrix = moments.unflat(scattered(solution, kept, now.shape))
        self._set(weight_of(node), reader.weight, layout.weight(matrix.to(weight.dtype), weight))
        if reader.bias is not None:
            bias = self.statistics.tensors[reader.bias]
            shift = (wanted_mean - torch.einsum("brk,bk->br", solution, mean)).unflatten(1, (reader.rows, -1)).sum(2)
            self._set(arguments["bias"], reader.bias, (bias.double() + shift.flatten()).to(bias.dtype))

    def _masked(self, x: Tensor, source: fx.Node) -> Tensor:
        stays = self.topology.stays(self.topology.labels.outputs[source.name], self.mask[:-1])
        return x * stays.to(x)

    def _shortcut(self, node: fx.Node) -> tuple[fx.Node, Tensor] | None:
        """What a reader's result is added to, and what it is multiplied with on its way there, [rows]."""
        user = _only_user(node)
        scale, first = torch.ones(1), node
        if user is not None and Program.operation(user) == "batch_norm":
            arguments = bound(user)
            names = [tensor_name(self.topology, arguments[name]) for name in ("weight", "running_var")]
            if not all(names):
                return None
            gain, variance = (self.statistics.tensors[name] for name in names)
            scale, first = gain / (variance + arguments["eps"]).sqrt(), user
            user = _only_user(user)
        if user is None or Program.operation(user) not in {"add", "add_"} or bound(user).get("alpha", 1) != 1:
            return None
        others = [other for other in user.args[:2] if isinstance(other, fx.Node) and other is not first]
        known = self.original[0].values
        same = len(others) == 1 and others[0] in known and Program.shape(others[0]) == Program.shape(first)
        return (others[0], scale) if same else None

    def _missing(self, original: Walk, pruned: Walk, shortcut: fx.Node, scale: Tensor) -> Tensor:
        """What the shortcut lacks, as a change of the reader's result."""
        missing = original.values[shortcut] - pruned.values[shortcut]
        inverse = torch.where(scale.abs() > _SMALL_SCALE, 1 / scale, 0).to(missing)
        return missing * inverse.view(1, -1, *[1] * (missing.dim() - 2)) if len(scale) > 1 else missing

    def _re_estimate(self, node: fx.Node) -> None:
        """Statistics of a BatchNorm on what it gets now."""
        arguments = bound(node)
        names = {part: tensor_name(self.topology, arguments[part]) for part in ("running_mean", "running_var")}
        if not all(names.values()):
            return
        inputs = [walk.values[arguments["input"]].transpose(0, 1).flatten(1).double() for walk in self.pruned]
        number = sum(x.shape[1] for x in inputs)
        mean = sum((x.sum(1) for x in inputs), torch.zeros(())) / number
        variance = sum(((x - mean.unsqueeze(1)).square().sum(1) for x in inputs), torch.zeros(())) / max(number - 1, 1)
        for part, value in (("running_mean", mean), ("running_var", variance)):
            old = self.statistics.tensors[names[part]]
            self._set(arguments[part], names[part], value.to(old.dtype))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _live_bytes(topology: Topology) -> int:
    """What the results of operations that are still needed take at most, for one image."""
    graph = topology.program.graph
    last_use = {source: node for node in graph.nodes for source in node.all_input_nodes}
    sizes: dict[fx.Node, int] = {}
    most = 1
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor):
            sizes[node] = 4 * shape_of(value).numel() // topology.program.batch
        most = max(most, sum(sizes.values()))
        for source in node.all_input_nodes:
            if last_use[source] is node:
                sizes.pop(source, None)
    return most
