from pathlib import Path

import pytest
import torch
from searching import agent_of, bandit, run_search, without_time
from torch import Tensor, nn

from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.evolution import EvolutionAgent
from gnnrl_lightning.searching.agents.protocol import Episodes
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.topology import Topology, trace

NEVER = torch.Generator()


def no_step(loss: Tensor) -> None:
    raise AssertionError("there is nothing to optimise")


def episodes_of(widths: Tensor, rewards: list[float]) -> Episodes:
    """Episodes of two steps that ended at these widths, [B, G]."""
    steps = torch.ones(2, *widths.shape)
    earned = torch.stack([torch.zeros(len(rewards)), torch.tensor(rewards)])
    return Episodes(steps, torch.zeros_like(steps), torch.ones(2, len(rewards), dtype=torch.bool), earned, widths)


def children(agent: nn.Module, topology: Topology, count: int) -> Tensor:
    """Widths that the agent proposes for whole networks, [count, G]."""
    full = topology.full_widths()
    ratios = agent.propose(torch.ones(count, len(full)), torch.Generator().manual_seed(0))
    assert (ratios >= 0).all() and (ratios < 1).all()
    return ((1 - ratios) * full).round().long()


@pytest.mark.parametrize("seed", [0, 1])
def test_it_finds_more_than_random_proposals_do(resnet20_topology: Topology, tmp_path: Path, seed: int) -> None:
    """With equally many evaluations, of a reward that says how near the widths are to a target."""
    found = {}
    for name in ("random", "evolution"):
        module = SearchModule(agent_of(name, resnet20_topology, seed), bandit(resnet20_topology), 200, seed, {})
        found[name] = run_search(module, tmp_path / name)
    last = {name: sum(row["reward"] for row in module.history[-50:]) / 50 for name, module in found.items()}
    assert last["evolution"] > 0.75 * last["random"]  # rewards are negative: a quarter less of the distance
    assert found["evolution"].best["reward"] > 0.85 * found["random"].best["reward"]
    assert len({row["widths"] for row in found["evolution"].history}) >= 195


def small(min_keep: float) -> tuple[EvolutionAgent, Topology]:
    """An agent for a network of two groups."""
    layers = nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Conv2d(20, 2, 3)
    topology = trace(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8), min_keep=min_keep, divisor=8)
    task = Task(topology, topology.macs, topology.macs(), topology.full_widths(), list)
    return EvolutionAgent(task, 4, 2, 0.1), topology


def test_the_first_generation_is_drawn_from_all_allowed_widths() -> None:
    drawn = children(*small(min_keep=0.3), count=100)
    assert [widths.unique().tolist() for widths in drawn.T] == [[8, 12], [8, 16, 20]]


def test_half_are_mutants_and_half_are_crosses(resnet20_topology: Topology) -> None:
    """Of two parents that share no gene, so that every gene of a child says where it is from."""
    low, full = resnet20_topology.min_widths(), resnet20_topology.full_widths()
    agent = agent_of("evolution", resnet20_topology, parents=2)
    agent.learn(episodes_of(torch.stack([low, full]), [-1.0, -2.0]), 0.1, NEVER, no_step)
    bred = children(agent, resnet20_topology, count=400)
    assert not ((bred == low).all(1) | (bred == full).all(1)).any()
    mutants, crosses = bred.split(200)
    from_low = (crosses == low).float()
    assert ((crosses == low) | (crosses == full)).all() and 0.45 < from_low.mean() < 0.55
    assert from_low.mean(0).min() > 0.35 and from_low.mean(0).max() < 0.65
    changed = torch.minimum((mutants != low).sum(1), (mutants != full).sum(1))
    # A gene in ten of 12 groups, but for those drawn as they were (one in 15 or so) and for children without a change.
    assert changed.min() == 1 and 1.3 < changed.float().mean() < 2.1
    assert len(bred.unique(dim=0)) == 400


def test_the_parents_are_the_best_of_all_generations(resnet20_topology: Topology) -> None:
    agent = agent_of("evolution", resnet20_topology, parents=3)
    widths = [resnet20_topology.full_widths() - number for number in range(6)]
    agent.learn(episodes_of(torch.stack(widths[:2]), [-5.0, -3.0]), 0.1, NEVER, no_step)
    assert agent.rewards.tolist() == [-3.0, -5.0, -float("inf")]
    again = torch.stack([*widths[2:4], widths[1]])
    metrics = agent.learn(episodes_of(again, [-4.0, -9.0, -3.0]), 0.2, NEVER, no_step)
    assert agent.rewards.tolist() == [-3.0, -4.0, -5.0]  # and none of them twice
    assert torch.equal(agent.widths, torch.stack([widths[1], widths[2], widths[0]]))
    assert metrics == {"worst_parent": -5.0, "mean_parent": -4.0}


def test_a_child_that_is_above_the_budget_is_pruned_uniformly(resnet20_topology: Topology) -> None:
    env, agent = bandit(resnet20_topology), agent_of("evolution", resnet20_topology, parents=2)
    full = resnet20_topology.full_widths()
    agent.learn(episodes_of(torch.stack([full - 1, full]), [-1.0, -2.0]), 0.1, NEVER, no_step)
    kept, generator = torch.ones(30, 12, dtype=torch.float64), torch.Generator().manual_seed(0)
    kept, widths, done = env.advance(kept, agent.propose(kept.float(), generator), 0)
    assert torch.equal(widths[~done], children(agent, resnet20_topology, count=30)[~done]) and (~done).sum() > 10
    ratios = agent.propose(kept.float(), generator)
    assert len(ratios.unique()) == 1
    assert env.advance(kept, ratios, 1)[2].all()


def test_a_network_without_a_choice_is_proposed_again() -> None:
    """Redrawing ends, also where every child repeats its parent."""
    agent, topology = small(min_keep=1.0)
    agent.learn(episodes_of(torch.tensor([[12, 20]]), [-1.0]), 0.1, NEVER, no_step)
    assert children(agent, topology, count=3).tolist() == [[12, 20]] * 3


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_search_ends_as_the_uninterrupted_one(
    resnet20_topology: Topology, tmp_path: Path, stop_after: int
) -> None:
    def module(seed: int = 3) -> SearchModule:
        agent = agent_of("evolution", resnet20_topology, episodes_per_iteration=4, parents=5)
        return SearchModule(agent, bandit(resnet20_topology), 18, seed, {})

    whole = run_search(module(), tmp_path / "whole")
    run_search(module(), tmp_path / "stopped", iterations=stop_after)
    torch.manual_seed(99)  # what the new process would draw must not matter
    resumed = run_search(module(), tmp_path / "stopped")
    assert without_time(resumed.history) == without_time(whole.history)
    for name, value in whole.agent.state_dict().items():
        assert torch.equal(resumed.agent.state_dict()[name], value), name
    other = run_search(module(seed=4), tmp_path / "other")
    assert [row["widths"] for row in other.history] != [row["widths"] for row in whole.history]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"episodes_per_iteration": 0}, r"agent\.episodes_per_iteration=0 must be a whole number of at least 1"),
        ({"parents": 1}, r"agent\.parents=1 must be a whole number of at least 2"),
        ({"mutation": 0}, r"agent\.mutation=0 must be a number above 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_refused(
    resnet20_topology: Topology, setting: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        agent_of("evolution", resnet20_topology, **setting)
