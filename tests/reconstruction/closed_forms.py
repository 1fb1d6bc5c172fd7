"""Small networks with images, and their closed forms."""

from typing import Any

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.samples import HeldImages, Preprocessing
from gnnrl_lightning.pruning.verify import verified
from gnnrl_lightning.reconstruction.reconstruction import Reconstruction
from gnnrl_lightning.settings import RefitConfig
from gnnrl_lightning.topology import trace

PLAIN = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 8, 8, "bilinear")


def pictures(count: int, side: int = 8, seed: int = 0) -> HeldImages:
    """Coarse noise, as neighbours in pictures are alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, side // 2, side // 2, generator=generator)
    noise = torch.rand(count, 3, side, side, generator=generator)
    pixels = 255 * (0.7 * coarse.repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.3 * noise)
    return HeldImages(pixels.to(torch.uint8), PLAIN)


def closed_forms(model: nn.Module, images: HeldImages, **settings: Any) -> Reconstruction:
    topology = trace(model.eval(), torch.zeros(1, *images.pixels.shape[1:]))
    return Reconstruction(model, topology, images, RefitConfig(**{"images": len(images), "samples": 1000, **settings}))


def error(found: Reconstruction, kept: list[list[int]], values: dict[str, Tensor], images: HeldImages) -> float:
    """Of the pruned network's scores, as a part of the size of the original's."""
    small = verified(found.model, found.topology, kept, values).eval()
    with torch.no_grad():
        scores = found.model(images[:])
        return float((small(images[:]) - scores).norm() / (scores - scores.mean(0)).norm())
