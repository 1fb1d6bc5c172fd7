"""Two processes that found different winners; each writes the one that it goes on with. Argument: folder."""

import sys

import torch
from torch import distributed, multiprocessing

from gnnrl_lightning.training.run import agreed


def main(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(agreed((torch.tensor([rank, 7]), -float(rank))), f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(main, (sys.argv[1],), 2)  # type: ignore[no-untyped-call]
