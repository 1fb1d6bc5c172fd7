"""Images on a device, and a training there that ends by the clock: what benchmarks/gpu.py needs besides the package.

No data loader and no Lightning: on a GPU small networks wait for both.
"""

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnrl_lightning.data import IMAGENET, FolderDataModule, HeldImages
from gnnrl_lightning.data.images import MemoryImages
from gnnrl_lightning.evaluation.reward import correct
from gnnrl_lightning.settings import FitConfig
from gnnrl_lightning.training.supervised import distilled

EVALUATED = 1000
"""Images of a forward pass without a backward one."""
SYNCHRONISED = 10
"""Steps between looks at what the GPU has done."""
SETTINGS = FitConfig(epochs=0, lr=0.05, weight_decay=1e-4, distill=0.5)
BATCH = 256


@dataclass(frozen=True)
class Images:
    """The three splits on the device: pixels to train on; images and labels of the other two."""

    train: MemoryImages
    reward: tuple[HeldImages, Tensor]
    test: tuple[HeldImages, Tensor]

    @property
    def device(self) -> torch.device:
        return self.train.pixels.device

    def held(self, count: int) -> tuple[HeldImages, Tensor]:
        """The first training images, as they are."""
        return HeldImages(self.train.pixels[:count], IMAGENET), self.train.labels[:count]

    def top1(self, network: nn.Module) -> float:
        """On the test images, in %."""
        return 100 * correct(network, *self.test, EVALUATED) / len(self.test[1])


def loaded(root: Path, classes: int, limit: int | None, device: torch.device) -> Images:
    """The splits that every search makes of the data, or the first images of each."""
    data = FolderDataModule(
        root=str(root), size=None, resize=None, test_fraction=0.5, num_workers=0, name="folder", num_classes=classes,
        reward_images=None, batch_size=BATCH, eval_batch_size=EVALUATED, flip=True, epochs=1, preprocessing=IMAGENET,
        seed=0,
    )  # fmt: skip
    data.setup()
    if not isinstance(data.splits["train"], MemoryImages):
        raise ValueError(f"{root} has images of more than 64 pixels, which are not held in memory; give CIFAR-10.")
    held = {}
    for name, split in data.splits.items():
        images, labels = data.tensors(name, min(limit or len(split.labels), len(split.labels)))
        held[name] = images.to(device), labels.to(device)
    pixels, labels = held["train"]
    return Images(MemoryImages(pixels.pixels, labels), held["reward"], held["test"])


def fine_tuned(network: nn.Module, teacher: nn.Module, images: Images, seed: int, seconds: float) -> dict[str, Any]:
    """Trains a copy for so many seconds, but at least a step, and tests it; the rate's cosine follows the clock."""
    device, train = images.device, images.train
    student = copy.deepcopy(network).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        student.parameters(), SETTINGS.lr, SETTINGS.momentum, weight_decay=SETTINGS.weight_decay
    )
    generator = torch.Generator(device).manual_seed(seed)
    size, rows, steps = min(BATCH, len(train.labels)), torch.empty(0, dtype=torch.long, device=device), 0
    started, spent = now(device), 0.0
    while spent < seconds or not steps:
        if len(rows) < size:
            rows = torch.randperm(len(train.labels), generator=generator, device=device)
        batch, rows = rows[:size], rows[size:]
        for group in optimizer.param_groups:
            group["lr"] = SETTINGS.lr * (1 + math.cos(math.pi * min(spent / max(seconds, 1e-9), 1))) / 2
        # A tensor of rows serves as well as a list, and never leaves the device.
        augmented = train.augmented(batch, True, generator)  # type: ignore[arg-type]
        inputs = IMAGENET.normalise(augmented).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                said = teacher(inputs)
            scores = student(inputs)
            loss = F.cross_entropy(scores, train.labels[batch])
            loss = distilled(loss, scores, said, SETTINGS.distill, SETTINGS.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        # A GPU is told what to do faster than it does it: without a look now and then the clock would run ahead.
        spent = (time.perf_counter() if steps % SYNCHRONISED else now(device)) - started
    spent = now(device) - started
    return {
        "seed": seed,
        "top1": images.top1(student),
        "loss": float(loss.detach()),
        "seconds": spent,
        "steps": steps,
        "epochs": steps * size / len(train.labels),
        "images_per_second": steps * size / spent,
    }


def now(device: torch.device) -> float:
    """Seconds; what a GPU was told to do is done by then."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
