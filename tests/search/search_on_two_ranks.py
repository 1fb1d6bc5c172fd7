"""A search in two processes; each writes what it holds at its end. Arguments: folder, agent, episodes, settings."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from searching import agent_of, bandit, in_iterations_of, run_search

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.topology import trace


def main() -> None:
    folder, agent, episodes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    topology = trace(resnet_cifar(20, 10), torch.zeros(1, 3, 32, 32), min_keep=0.1)
    policy = agent_of(agent, topology, **in_iterations_of(agent, 3), **json.loads(sys.argv[4]))
    module = SearchModule(policy, bandit(topology), episodes, seed=3, settings={})
    run_search(module, folder, devices=2, strategy="ddp")
    state = {"history": module.history, "parameters": dict(module.agent.named_parameters())}
    torch.save(state, folder / f"rank{module.global_rank}.pt")


if __name__ == "__main__":
    main()
