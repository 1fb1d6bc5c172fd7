"""What the statistics of the readers take of memory, and what fits into the memory that there is."""

import logging
import math

from torch import Tensor

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.reconstruction.readers import Reader
from gnnrl_lightning.reconstruction.sums import EXACT_ROWS
from gnnrl_lightning.topology import Topology
from gnnrl_lightning.topology.program import shape_of

log = logging.getLogger(__name__)

GIB = 2**30
_LARGEST_BATCH = 64


def activation_bytes(topology: Topology) -> int:
    """What a forward pass of one image keeps for the way back, at most."""
    values = (node.meta.get("val") for node in topology.program.graph.nodes if node.op == "call_function")
    return sum(4 * shape_of(value).numel() for value in values if isinstance(value, Tensor)) // topology.program.batch


def batch_size(bytes_an_image: int, memory_gb: float, images: int) -> int:
    """Images a forward pass, of so many in all.

    Raises:
        UserError: If the memory is not enough for a single one, with what is needed.
    """
    most = int(memory_gb * GIB / 2 // max(bytes_an_image, 1))
    if most < 1:
        raise UserError(
            f"refit.memory_gb={memory_gb:g} is not enough for the activations of one image, which take "
            f"{bytes_an_image / GIB:.2g} GiB; give refit.memory_gb={math.ceil(2 * bytes_an_image / GIB)}, or "
            f"refit.enabled=false."
        )
    return min(most, _LARGEST_BATCH, -(-images // 2))  # two batches at least: solutions of one are tried on the other


def within_memory(readers: list[Reader], memory_gb: float) -> tuple[list[Reader], set[str], list[Reader]]:
    """Readers of which moments are taken, of those the weights with moments of channels alone, and those left out.

    From the largest on, as many as it takes until all fit.
    """

    def size(reader: Reader, mixed: bool) -> int:
        columns = reader.channels if mixed else reader.columns
        rows = reader.blocks * min(reader.rows, EXACT_ROWS) * reader.rows
        return 8 * (2 * reader.blocks * (columns**2 + reader.columns) + rows)

    sizes = {reader.weight: size(reader, False) for reader in readers}
    mixed: set[str] = set()
    for reader in sorted(readers, key=lambda each: sizes[each.weight], reverse=True):
        if sum(sizes.values()) > memory_gb * GIB and reader.taps > 1:
            sizes[reader.weight] = size(reader, True)
            mixed.add(reader.weight)
    left = []
    for reader in sorted(readers, key=lambda each: sizes[each.weight], reverse=True):
        if sum(sizes.values()) > memory_gb * GIB:
            wanted = math.ceil(sum(sizes.values()) / GIB)
            log.info("refit: %s stays as it is; refit.memory_gb=%d would be enough for it", reader.weight, wanted)
            del sizes[reader.weight]
            left.append(reader)
    return [reader for reader in readers if reader.weight in sizes], mixed - {each.weight for each in left}, left
