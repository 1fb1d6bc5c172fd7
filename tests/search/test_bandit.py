"""A bandit whose best action is known and within the budget: every agent that learns must reach it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from searching import agent_of, run_search
from torch import Tensor, nn

from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.searching.agents.protocol import Episodes
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.topology import Topology, trace

BEST = torch.tensor([5, 19, 29])
QUICK = {"lr_actor": 1e-3, "lr_critic": 3e-3, "tau": 0.05}


@pytest.fixture(scope="module")
def chain() -> Topology:
    """Three groups, of 16, 32 and 32 channels."""
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return trace(network, torch.zeros(1, 3, 16, 16), min_keep=0.1)


def reward(widths: Tensor, topology: Topology) -> Tensor:
    """0 at the best widths, else minus the mean distance in % of a group's channels, [B] for [B, G]."""
    return -100 * ((widths - BEST) / topology.full_widths()).abs().mean(-1)


def searched(name: str, topology: Topology, seed: int, folder: Path, **changed: Any) -> SearchModule:
    """The best network is exactly what the budget allows, so that landing on the budget can reach it."""
    budget = float(topology.macs(BEST)) / topology.macs()
    env = PruningEnv(topology, topology.macs, budget, lambda widths: float(reward(widths, topology)), 5)
    episodes = 120 if name == "amc" else 192  # it learns after each
    return run_search(SearchModule(agent_of(name, topology, seed, **changed), env, episodes, seed, {}), folder)


def first_mean(module: SearchModule) -> float:
    return sum(row["reward"] for row in module.history[:16]) / 16


def last_mean(module: SearchModule) -> float:
    return sum(row["reward"] for row in module.history[-16:]) / 16


@pytest.mark.parametrize("seed", [0, 1])
def test_gnnrl_ends_at_the_best_action(chain: Topology, tmp_path: Path, seed: int) -> None:
    module = searched("gnnrl", chain, seed, tmp_path)
    assert module.best["reward"] > -3.2  # a channel of 16 and one of 32 away
    assert last_mean(module) > -8 > -15 > first_mean(module)


@pytest.mark.parametrize("seed", [0, 1])
def test_evolution_finds_the_best_network(chain: Topology, tmp_path: Path, seed: int) -> None:
    module = searched("evolution", chain, seed, tmp_path, episodes_per_iteration=16, parents=8)
    assert module.best["reward"] > -1.1
    assert last_mean(module) > -14 > -18 > first_mean(module)  # mutants differ from the best in whole genes


def test_amc_ends_at_the_best_action(chain: Topology, tmp_path: Path) -> None:
    """With shorter exploration than the paper's, whose warm-up alone is 100 episodes."""
    module = searched("amc", chain, 0, tmp_path, ddpg=QUICK | {"warmup": 10, "noise_decay": 0.95})
    assert last_mean(module) > -8 > -15 > first_mean(module)


@pytest.mark.parametrize(
    ("name", "changed", "seed"),
    [
        ("agmc", {"hidden_size": 64}, 0),
        ("agmc", {"hidden_size": 64}, 1),
        ("gnnrl_ddpg", {"updates_per_episode": 3}, 0),
    ],
)
def test_what_embeds_a_graph_for_ddpg_learns_the_best_action_from_random_experience(
    chain: Topology, name: str, changed: dict[str, Any], seed: int
) -> None:
    """Whole agents, from their memory through their embedding to what they propose then."""
    agent = agent_of(name, chain, seed, ddpg=QUICK | {"warmup": 0, "noise": 1e-6}, **changed)
    generator = torch.Generator().manual_seed(seed)
    count, full = 160, chain.full_widths()
    widths = ((1 - torch.rand(count, 3, generator=generator)) * full).round().long().clamp(min=2)
    active = torch.ones(1, count, dtype=torch.bool)
    tried = (1 - widths / full).unsqueeze(0)
    optimizer = agent.optimizer()

    def descend(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def distance() -> float:
        proposed = agent.propose(torch.ones(1, 3), torch.Generator().manual_seed(0)).detach()
        return -float(reward((1 - proposed[0]) * full, chain))

    before = distance()
    episodes = Episodes(torch.ones(1, count, 3), tried, active, reward(widths, chain).unsqueeze(0), widths)
    agent.learn(episodes, 0.5, generator, descend)
    assert distance() < before / 2, (before, distance())
