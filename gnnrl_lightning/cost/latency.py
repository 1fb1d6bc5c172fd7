"""Cost in latency on this device: from a table of operations that is measured once."""

import hashlib
import json
import logging
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError, require_whole
from gnnrl_lightning.core.files import write_json
from gnnrl_lightning.core.inputs import changed, repeated, tensors_in
from gnnrl_lightning.core.ranks import agreed, alone, is_first
from gnnrl_lightning.cost.timing import Times, measure
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.closed_form import Count

log = logging.getLogger(__name__)

_BLOCKS = (8, 16)
"""Kernels compute channels in blocks: for one channel more a whole block may be paid."""
_ALIGNED = (4, 16)
"""Channels that are no multiple of these may be computed by slower kernels."""
_WHOLE_WEIGHT = 16.0
"""Samples that the whole network counts for: every budget is a fraction of it."""
_ROWS = 1024
_PATIENCE = 3600.0
"""Seconds that ranks wait for the table."""


class Latency:
    """Time of a forward pass on this device, in nanoseconds: the sum of its operations'.

    An operation's time is fitted to measurements as a + Σ bᵢ·cᵢ + Σ dᵢⱼ·cᵢ·cⱼ. Among the c are its input and output
    channels, the same rounded up to blocks, and the same where they are not aligned, else 0; no coefficient is below 0.
    Operations that are alike share one fit. The table is kept in the cache, and read from there where the network, the
    batch and the device are the same.

    Args:
        topology: The network's groups.
        network: It, as it is going to be pruned: the model or its rewritten graph.
        device: Where it is measured.
        batch_size: Images of the forward pass.
        cache: Folder of the tables.

    Raises:
        UserError: If the batch size is no whole number above 0.
    """

    name = "latency"
    unit = "ms"
    measured_as = "median_ms"

    def __init__(self, topology: Topology, network: nn.Module, device: torch.device, batch_size: int, cache: str):
        require_whole("cost.batch_size", batch_size, 1)
        self.batch_size = batch_size
        path = Path(cache) / f"latency-{_digest(topology, device, batch_size)}.json"
        with alone(path):  # two that measure at the same time would disturb each other
            if not agreed(path.is_file()) and is_first():
                images = changed(repeated(topology.program.example, batch_size), lambda x: x.to(device))
                log.info("measuring what each operation takes on %s, once: %s", _device_name(device), path)
                write_json(path, _table(topology, measure(topology, network, images), device))
        _wait_for(path)
        table = _read(path, topology)
        self._fixed = 1e6 * table["between_ms"]
        # Operations on the same channels are one: their coefficients add up.
        sums: dict[str, tuple[list[Count], np.ndarray]] = {}
        for row in table["operations"]:
            counts = _counts(topology, row["name"])
            key = repr([(fixed, vector.tolist()) for fixed, vector in counts])
            mine = 1e6 * np.array(row["coefficients"])
            sums[key] = (counts, sums[key][1] + mine if key in sums else mine)
        self._counts = [counts for counts, _ in sums.values()]
        self._coefficients = torch.from_numpy(np.stack([mine for _, mine in sums.values()]))  # [K, features]

    def __call__(self, widths: Tensor) -> Tensor:
        """Cost of widths [..., G] in nanoseconds, as integers [...]."""
        rows = [self._of(part) for part in widths.reshape(-1, widths.shape[-1]).double().split(_ROWS)]
        return torch.cat(rows).reshape(widths.shape[:-1])

    def _of(self, widths: Tensor) -> Tensor:
        times = torch.einsum("nkf,kf->n", _features(self._counts, widths), self._coefficients)
        return (self._fixed + times).round().long()


def _table(topology: Topology, times: Times, device: torch.device) -> dict[str, Any]:
    """What the cache holds: each operation with its time in the whole network and its coefficients, in milliseconds."""
    nodes = {node.name: node for node in topology.program.graph.nodes}
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(times.operations):
        columns.setdefault(_alike(topology, nodes[name]), []).append(column)
    fits = {}
    weights = torch.ones(len(times.widths), dtype=torch.float64)
    weights[0] = _WHOLE_WEIGHT
    for alike in columns.values():
        counts = [_counts(topology, times.operations[column]) for column in alike]
        features = _features(counts, times.widths.double())  # [S, operations, features]
        x, y = features.flatten(0, 1).numpy(), 1e3 * times.seconds[:, alike].flatten().numpy()
        # Errors of large times may be larger, though not in proportion: the sum is what counts.
        scale = np.sqrt(weights.repeat_interleave(len(alike)).numpy() / np.maximum(y, 1e-4))
        size = np.where(x.max(0) > 0, x.max(0), 1)  # a feature that no sample has gets no share
        fit = nnls(x / size * scale[:, None], y * scale)[0] / size
        fits.update(dict.fromkeys(alike, fit.tolist()))
    return {
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "between_ms": 1e3 * times.between,
        "operations": [
            {"name": name, "where": topology.program.place(nodes[name]), "ms": 1e3 * ms, "coefficients": fits[column]}
            for column, (name, ms) in enumerate(zip(times.operations, times.seconds[0].tolist(), strict=True))
        ],
    }


def _counts(topology: Topology, operation: str) -> list[Count]:
    """The counts of channels that an operation's time follows, two at most."""
    for product in topology.labels.products:
        if product.node == operation and product.rows is not None:
            return topology.operands(product)
    return topology.lengths(operation)[:2]


def _features(counts: Sequence[list[Count]], widths: Tensor) -> Tensor:
    """What the times of K operations are linear in, [N, K, features], at widths [N, G]; of a count that is not, 0."""
    none: Count = (0, torch.zeros(widths.shape[-1], dtype=torch.long))
    pairs = [[*each, none, none][:2] for each in counts]
    fixed = torch.tensor([[fixed for fixed, _ in pair] for pair in pairs], dtype=torch.float64)
    vectors = torch.stack([vector for pair in pairs for _, vector in pair]).double()
    c = fixed + (widths @ vectors.T).unflatten(1, (-1, 2))  # [N, K, 2]
    blocks = [(c / size).ceil() * size for size in _BLOCKS]
    each = torch.stack([c, *blocks, *(c * (c % size != 0) for size in _ALIGNED)], -1)  # [N, K, 2, 5]
    products = each[..., 0, :].unsqueeze(-1) * each[..., 1, :].unsqueeze(-2)
    return torch.cat([torch.ones_like(c[..., :1]), each.flatten(2), products.flatten(2)], -1)


def _alike(topology: Topology, node: Any) -> str:
    """Equal for operations that do the same to activations and parameters of the same shapes."""
    shapes = [str(getattr(source.meta.get("val"), "shape", "")) for source in node.all_input_nodes]
    settings = [argument for argument in node.args if argument not in node.all_input_nodes]
    wide = [(fixed, int(vector.sum())) for fixed, vector in _counts(topology, node.name)]
    return repr((str(node.target), shapes, settings, node.kwargs, wide))


def _wait_for(path: Path) -> None:
    """Ranks but the first wait for its table."""
    started = time.monotonic()
    while not path.is_file():
        if time.monotonic() - started > _PATIENCE:
            raise UserError(f"{path} does not appear; paths.cache={path.parent} must be one folder for all ranks.")
        time.sleep(0.5)


def _read(path: Path, topology: Topology) -> dict[str, Any]:
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        float(table["between_ms"])
        features = _features([[]], topology.full_widths()[None].double()).shape[-1]
        for row in table["operations"]:
            if row["name"] not in topology.labels.outputs or len(row["coefficients"]) != features:
                raise UserError(f"{row['name']} has {len(row['coefficients'])} coefficients")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no table of operations ({error}); delete it to measure anew.") from error
    return table


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = (
        re.findall(r"^model name\s*: (.*)$", info.read_text(encoding="utf-8"), re.MULTILINE) if info.is_file() else []
    )
    return f"{models[0] if models else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"


def _digest(topology: Topology, device: torch.device, batch_size: int) -> str:
    groups = [(group.name, group.width, group.divisor) for group in topology.groups]
    machine = (_device_name(device), torch.get_num_threads(), torch.__version__)
    shape = (batch_size, *[tuple(each.shape[1:]) for each in tensors_in(topology.program.example)])
    known_by = (str(topology.program), groups, shape, machine, _BLOCKS, _ALIGNED)
    return hashlib.sha256(repr(known_by).encode()).hexdigest()[:12]
