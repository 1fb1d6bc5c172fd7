"""Two ranks that differ, beside a job that makes a file; each writes what it goes on with. Argument: folder."""

import sys
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn

from gnnrl_lightning.core import ranks
from gnnrl_lightning.core.ranks import agreed, alone
from gnnrl_lightning.cost.latency import Latency
from gnnrl_lightning.importance.ranking import Ranking
from gnnrl_lightning.topology import trace


def main(rank: int, folder: str) -> None:
    ranks._PATIENCE = 0.1
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    winner = agreed((torch.tensor([rank, 7]), -float(rank)))
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, rank)
    ranking = Ranking([torch.tensor([float(rank), 0.5])], model=network).agreed()
    made = Path(folder, "made")
    with alone(made):
        found = agreed(made.is_file())
    chain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    topology = trace(chain, torch.zeros(1, 3, 8, 8))
    cost = Latency(topology, chain, torch.device("cpu"), 1, folder)
    nanoseconds = int(cost(topology.full_widths()))
    kept = ranking.kept(torch.tensor([1]))
    torch.save((*winner, kept, float(network.weight.detach()), found, nanoseconds), f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(main, (sys.argv[1],), 2)  # type: ignore[no-untyped-call]
