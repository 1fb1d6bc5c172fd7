"""How images lie in memory: channels last where a network can."""

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gnnrl_lightning.core.copies import copied
from gnnrl_lightning.core.inputs import Inputs, call, laid_out, tensors_in

_ENOUGH = 16
"""Input channels from which on the CPU's kernels can learn a strided convolution of single pixels."""


@torch.no_grad()
def to_fastest_layout(model: nn.Module, images: Inputs) -> torch.memory_format:
    """Moves a network to channels-last, which halves the time of a step on a CPU, if its `forward` runs so.

    `view` asks for memory that is contiguous, weights of five dimensions know no channels-last, and some convolutions
    end the process when they learn so.

    Args:
        model: Changed in place, in its layout alone.
        images: Some that it takes, on its device; one or two will do.

    Returns:
        The layout that its images want.
    """
    try:
        crashes = _crashes(model, images)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever the user's forward raises
        return torch.contiguous_format
    layout = torch.contiguous_format if crashes else torch.channels_last
    model.to(memory_format=layout)
    return layout


@torch.no_grad()
def layout_to_learn(model: nn.Module, images: Inputs) -> torch.memory_format:
    """The layout in which a network may learn: that of the images, but contiguous where that would end the process."""
    last = torch.channels_last
    moved = any(
        x.dim() == 4 and x.is_contiguous(memory_format=last) for x in tensors_in(images) if not x.is_contiguous()
    )
    if moved and next(model.parameters()).device.type == "cpu" and _crashes(model, images):
        model.to(memory_format=torch.contiguous_format)
        return torch.contiguous_format
    return torch.preserve_format


def _crashes(model: nn.Module, images: Inputs) -> bool:
    """Whether a network may not learn with channels last."""
    twin = copied(model).eval().to(memory_format=torch.channels_last)
    with _Crashes() as found:
        call(twin, laid_out(images, torch.channels_last))
    return found.seen


class _Crashes(TorchFunctionMode):
    """Looks for convolutions whose backward pass ends the process with SIGSEGV on large channels-last maps.

    Of torch 2.14.1 on the CPU: kernels of one pixel, a stride, and fewer than 16 input channels.
    """

    seen = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "").startswith("conv2d") and len(args) > 1:
            weight = args[1]
            stride = args[3] if len(args) > 3 else kwargs.get("stride", 1)
            strided = max(stride) > 1 if isinstance(stride, list | tuple) else stride > 1
            one_pixel = tuple(weight.shape[2:]) == (1, 1)
            self.seen |= weight.device.type == "cpu" and one_pixel and strided and weight.shape[1] < _ENOUGH
        return function(*args, **kwargs)
