"""Statistics taken by two processes together; each writes what it holds. Arguments: folder, images."""

import sys
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from closed_forms import closed_forms, pictures

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.reconstruction.statistics import Statistics


def network() -> nn.Module:
    torch.manual_seed(0)
    return resnet_cifar(8, 6)


def numbers(found: Statistics) -> dict[str, torch.Tensor]:
    """All that follows from images."""
    kinds = ("gram", "mean", "sensitivity")
    values = {f"{m.reader.weight} {kind}": getattr(m, kind) for m in found.moments for kind in kinds}
    # Its factor is known but for a rotation.
    products = {name: value.mT @ value for name, value in values.items() if "sensitivity" in name}
    told = {f"{m.reader.weight} told": torch.tensor([m.ridge or -1, m.optimism, m.share]) for m in found.moments}
    return values | products | told


def main(rank: int, folder: str, images: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(numbers(closed_forms(network(), pictures(images)).statistics), f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(main, (sys.argv[1], int(sys.argv[2])), 2)  # type: ignore[no-untyped-call]
