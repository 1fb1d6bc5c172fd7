"""How near the predicted costs are to the pruned networks' own. Run on a quiet machine: make bench-costs.

For random plans: predicted and measured latency as fractions of the whole network's, measured side by side, and
predicted and measured peak memory. The bar for both is 10 %.
"""

import os
import statistics
import tempfile

import torch
import torchvision
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from gnnrl_lightning.app.launch import keep_freed_memory
from gnnrl_lightning.cost.latency import Latency
from gnnrl_lightning.cost.memory import Memory
from gnnrl_lightning.evaluation.measure import speeds
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.pruning.rewrite import rewrite
from gnnrl_lightning.pruning.surgery import prune
from gnnrl_lightning.pruning.verify import provable
from gnnrl_lightning.topology import trace

PLANS, DEVICE = 5, torch.device("cpu")
CASES: list[tuple[str, nn.Module, int, int]] = [
    ("ResNet-56", resnet_cifar(56, 10), 32, 1),
    ("ResNet-56", resnet_cifar(56, 10), 32, 32),
    ("MobileNet-v2", torchvision.models.mobilenet_v2(), 224, 1),
    ("ResNet-18", torchvision.models.resnet18(), 224, 1),
    ("ShuffleNet-v2", torchvision.models.shufflenet_v2_x1_0(), 224, 1),
]


def compare(model: nn.Module, size: int, batch: int) -> tuple[list[float], list[float], list[float]]:
    """Measured latency ratios, and relative errors of latency ratio and of memory, one a plan."""
    topology, remove = provable(model, trace(model, torch.zeros(1, 3, size, size), min_keep=0.1))
    network = model if remove is prune else rewrite(model, topology, topology.all_channels())
    with tempfile.TemporaryDirectory() as cache:
        latency = Latency(topology, network, DEVICE, batch, cache)
    memory = Memory(topology, network, DEVICE, batch)
    full, generator = topology.full_widths(), torch.Generator().manual_seed(5)
    ratios, times, bytes_ = [], [], []
    for _ in range(PLANS):
        kept = 0.3 + 0.6 * torch.rand(len(full), generator=generator)
        widths = torch.maximum((full * kept).round().long(), topology.min_widths())
        small = remove(model, topology, [range(width) for width in widths.tolist()])
        before, after = speeds([network, small], torch.randn(batch, 3, size, size), DEVICE)
        ratios.append(after.median_ms / before.median_ms)
        times.append(int(latency(widths)) / int(latency(full)) / ratios[-1] - 1)
        bytes_.append(int(memory(widths)) / after.peak_bytes - 1)
    return ratios, times, bytes_


def main() -> None:
    """Prints the table."""
    keep_freed_memory()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which counts memory, is talkative
    table = Table(title=f"predicted against measured, {PLANS} random plans each, {torch.get_num_threads()} threads")
    for column in ("network", "batch", "latency measured", "latency error %", "largest", "memory error %"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, model, size, batch in track(CASES, "measuring", transient=True):
        ratios, times, bytes_ = compare(model.eval(), size, batch)
        table.add_row(
            f"{name}, {size}×{size}",
            str(batch),
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{100 * statistics.mean(map(abs, times)):.1f}",
            f"{100 * max(map(abs, times)):.1f}",
            f"{100 * max(map(abs, bytes_)):.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
