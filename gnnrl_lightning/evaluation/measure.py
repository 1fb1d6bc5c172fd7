"""What a network really costs on this machine, and how well it does on images that nothing else has seen."""

import statistics
import time
from collections.abc import Sequence

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

_WARM_UP = 3
_LEAST = 10
_MOST = 100
_SECONDS = 5.0


@torch.inference_mode()
def test_top1(model: nn.Module, loader: DataLoader, device: torch.device, name: str) -> float:
    """Top-1 accuracy in % over a loader of (images, labels), with a progress bar."""
    model = model.to(device).eval()
    hits, seen = 0, 0
    for images, labels in track(loader, f"testing {name}", transient=True):
        scores = model(images.to(device, memory_format=torch.channels_last))
        hits += int((scores.argmax(1) == labels.to(device)).sum())
        seen += len(labels)
    return 100 * hits / seen


@torch.inference_mode()
def latencies(models: Sequence[nn.Module], image: Tensor, device: torch.device) -> list[float]:
    """Median time of a forward pass of each network, in milliseconds, measured side by side in turns.

    On a shared machine the absolute times are noise; their ratios are not.

    Args:
        models: Networks to compare.
        image: One batch, [N, 3, H, W].
        device: Where they run.
    """
    models = [model.to(device).to(memory_format=torch.channels_last).eval() for model in models]
    image = image.to(device, memory_format=torch.channels_last)
    times: list[list[float]] = [[] for _ in models]
    started = time.perf_counter()
    for round_ in range(_WARM_UP + _MOST):
        for model, mine in zip(models, times, strict=True):
            seconds = _forward_seconds(model, image)
            if round_ >= _WARM_UP:
                mine.append(seconds)
        if round_ >= _WARM_UP + _LEAST and time.perf_counter() - started > _SECONDS:
            break
    return [1000 * statistics.median(mine) for mine in times]


def _forward_seconds(model: nn.Module, image: Tensor) -> float:
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    started = time.perf_counter()
    model(image)
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return time.perf_counter() - started
