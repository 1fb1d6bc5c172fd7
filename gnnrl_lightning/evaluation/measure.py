"""What a network really costs on this machine, and how well it does on images that nothing else has seen."""

import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from rich.progress import track
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from gnnrl_lightning.core.inputs import Inputs, call, changed, count, laid_out, repeated, tensors_in
from gnnrl_lightning.core.layout import to_fastest_layout

_WARM_UP = 2
_LEAST = 12
_MOST = 200
_SECONDS = 5.0
_NARROW = 0.05
"""Half the width of the ratio's interval at which more rounds would say no more."""


@torch.no_grad()
def test_top1(model: nn.Module, loader: DataLoader, device: torch.device, name: str) -> float:
    """Top-1 accuracy in % over a loader of (images, labels), with a progress bar."""
    model = model.to(device).eval()
    hits, seen = 0, 0
    layout: torch.memory_format | None = None
    for images, labels in track(loader, f"testing {name}", transient=True):
        layout = layout or to_fastest_layout(model, images[:2].to(device))
        scores = model(images.to(device, memory_format=layout))
        hits += int((scores.argmax(1) == labels.to(device)).sum())
        seen += len(labels)
    return 100 * hits / seen


@dataclass(frozen=True)
class Speed:
    """What a forward pass of a batch costs: seconds in milliseconds, memory in bytes."""

    batch: int
    median_ms: float
    p95_ms: float
    images_per_second: float
    peak_bytes: int
    """Most memory at a time: weights and activations."""
    ratio: float
    """How many times as fast as the first network: the median of the rounds' ratios."""
    interval: tuple[float, float]
    """In which that median lies with 95 %, whatever the distribution: on a busy machine it may hold 1."""


@torch.no_grad()
def speeds(models: Sequence[nn.Module], images: Inputs, device: torch.device) -> list[Speed]:
    """Measures networks side by side in turns, each in its fastest layout.

    On a shared machine the absolute times are noise. Ratios are taken round by round, as many as an interval of some
    percent needs, or as fit into a few seconds.

    Args:
        models: Networks to compare.
        images: One batch, as they take it.
        device: Where they run.
    """
    images = changed(images, lambda x: x.to(device))
    layouts = [to_fastest_layout(model.to(device).eval(), images) for model in models]
    fed = [laid_out(images, layout) for layout in layouts]
    times: list[list[float]] = [[] for _ in models]
    started = time.perf_counter()
    for round_ in range(_WARM_UP + _MOST):
        for model, batch, mine in zip(models, fed, times, strict=True):
            seconds = _forward_seconds(model, batch)
            if round_ >= _WARM_UP:
                mine.append(seconds)
        if len(times[0]) >= _LEAST:
            enough = all(
                high - low < 2 * _NARROW * low for low, high in (_interval(times[0], mine) for mine in times[1:])
            )
            if enough or time.perf_counter() - started > _SECONDS:
                break
    return [
        Speed(
            batch=count(images),
            median_ms=1000 * statistics.median(mine),
            p95_ms=1000 * sorted(mine)[math.ceil(0.95 * len(mine)) - 1],
            images_per_second=count(images) / statistics.median(mine),
            peak_bytes=weight_bytes(model) + _peak_activations(model, batch),
            ratio=statistics.median(_ratios(times[0], mine)),
            interval=_interval(times[0], mine),
        )
        for model, batch, mine in zip(models, fed, times, strict=True)
    ]


def _ratios(first: Sequence[float], other: Sequence[float]) -> list[float]:
    return sorted(a / b for a, b in zip(first, other, strict=True))


def _interval(first: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The ranks between which the median lies with 95 %: so many below it are a binomial number."""
    ratios = _ratios(first, other)
    rank = max(0, math.floor((len(ratios) - 1.96 * math.sqrt(len(ratios))) / 2))
    return ratios[rank], ratios[-1 - rank]


def budget_check(
    cost: Any, counted: Sequence[int], models: Sequence[nn.Module], image: Inputs, device: torch.device
) -> dict[str, Any] | None:
    """What the budget counted beside what is measured, for a cost that is predicted; None for one that is exact.

    Args:
        cost: What the budget counts.
        counted: Cost of the original and the pruned network.
        models: These two.
        image: One that they take.
        device: Where they run.
    """
    if getattr(cost, "measured_as", None) is None:
        return None
    measured = speeds(models, repeated(image, cost.batch_size), device)
    unit = 1e6 if cost.measured_as == "peak_bytes" else 1
    return {
        "quantity": f"{cost.name} at batch {cost.batch_size}",
        "unit": cost.unit,
        "predicted": [value / 1e6 for value in counted],
        "measured": [getattr(each, cost.measured_as) / unit for each in measured],
    }


def weight_bytes(model: nn.Module) -> int:
    """Size of parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def _peak_activations(model: nn.Module, images: Inputs) -> int:
    """Most that a forward pass holds at a time beside the weights and the images, by the allocator's own account."""
    device = tensors_in(images)[0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call(model, images)
        return int(torch.cuda.max_memory_allocated(device) - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is talkative
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call(model, images)
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    steps = [int(event.nbytes()) for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(steps, initial=0))


def _forward_seconds(model: nn.Module, images: Inputs) -> float:
    device = tensors_in(images)[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call(model, images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
