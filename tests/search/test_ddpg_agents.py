"""AMC, AGMC and the m-GNN with DDPG: budgets met by construction, states as they were, and a bandit that is learned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from searching import agent_of, bandit, run_search, without_time
from torch import Tensor

from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.searching.agents.protocol import Episodes
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.topology import Topology, trace

NAMES = ("amc", "agmc", "gnnrl_ddpg")
QUICK: dict[str, Any] = {"hidden_size": 32, "ddpg": {"warmup": 4, "lr_actor": 1e-3, "noise_decay": 0.9}}
_FASTER = {"warmup": 10, "lr_actor": 1e-3, "lr_critic": 3e-3, "tau": 0.05, "noise_decay": 0.93}
LEARNING: dict[str, dict[str, Any]] = {
    "amc": {"ddpg": _FASTER},
    "agmc": {"hidden_size": 64, "ddpg": _FASTER | {"lr_actor": 3e-4, "noise_decay": 0.95}},
    "gnnrl_ddpg": {"batch_size": 16, "ddpg": _FASTER},
}
GENERATOR = torch.Generator()


def search(
    name: str, topology: Topology, folder: Path, iterations: int | None = None, episodes: int = 10, **changed: Any
) -> Any:
    agent = agent_of(name, topology, **QUICK | changed)
    return run_search(SearchModule(agent, bandit(topology), episodes, 3, {"seed": 3}), folder, iterations)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop_after", [2, 7])
def test_a_resumed_search_ends_as_the_uninterrupted_one(
    resnet20_topology: Topology, tmp_path: Path, name: str, stop_after: int
) -> None:
    """Before and after the warm-up: memory, targets, baseline and exploration are in the checkpoint."""
    whole = search(name, resnet20_topology, tmp_path / "whole")
    search(name, resnet20_topology, tmp_path / "stopped", stop_after)
    torch.manual_seed(99)
    resumed = search(name, resnet20_topology, tmp_path / "stopped")
    assert without_time(resumed.history) == without_time(whole.history)
    state = whole.agent.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in resumed.agent.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_learns_what_is_rewarded(tmp_path: Path, name: str) -> None:
    topology = trace(resnet_cifar(8, 10), torch.zeros(1, 3, 32, 32), min_keep=0.1)
    rewards = [row["reward"] for row in search(name, topology, tmp_path, episodes=70, **LEARNING[name]).history]
    means = [sum(rewards[start : start + 10]) / 10 for start in range(0, 70, 10)]
    assert max(means[2:]) > 0.8 * (means[0] + means[1]) / 2, means  # rewards are negative: a fifth less of the distance


@pytest.mark.parametrize("budget", [0.2, 0.5, 0.9])
def test_amc_meets_the_budget_by_construction(resnet20_topology: Topology, budget: float) -> None:
    agent = agent_of("amc", resnet20_topology)
    agent.task = task = bandit(resnet20_topology, budget).task(list)
    ratios = agent.propose(torch.ones(64, 12), torch.Generator().manual_seed(0))
    full = resnet20_topology.full_widths()
    widths = ((1 - ratios) * full).round().long()
    assert (task.cost(widths) <= task.allowed).all()
    assert (widths >= 0.2 * full).all()
    # The wall is where the groups behind are at their lowest: an actor that wants all is stopped late.
    agent.ddpg.episodes.fill_(100)
    agent.ddpg.noise = 1e-9
    torch.nn.init.constant_(agent.ddpg.policy.heads.actor[-2].bias, 20.0)
    widths = ((1 - agent.propose(torch.ones(1, 12), GENERATOR)) * full).round().long()[0]
    assert task.cost(widths) <= task.allowed
    wider = widths.clone()
    first = int((widths < full).nonzero()[0])
    wider[first] += 1
    wider[first + 1 :] = agent.lowest[first + 1 :]
    assert task.cost(wider) > task.allowed
    assert torch.equal(widths[:first], full[:first])


def test_amc_sees_eleven_features(resnet20_topology: Topology) -> None:
    agent = agent_of("amc", resnet20_topology)
    full = resnet20_topology.full_widths().unsqueeze(0)
    decided = full.clone()
    decided[0, :5] //= 2
    state = agent._state(full, decided, torch.tensor([0.5]), 5)[0]
    whole = resnet20_topology.macs()
    lowest = decided.clone()
    lowest[0, 5:] = agent.lowest[5:]
    reduced = 1 - float(resnet20_topology.macs(decided[0])) / whole
    rest = float(resnet20_topology.macs(decided[0]) - resnet20_topology.macs(lowest[0])) / whole
    # Place, n, c, h, w, stride, k (the same everywhere, so 0), MACs: layer2.0.conv2, from 0 to 1 over the groups.
    static = [5 / 11, 16 / 48, 29 / 61, 8 / 24, 8 / 24, 0, 0, 1]
    torch.testing.assert_close(state, torch.tensor([*static, reduced, rest, 0.5]))


def walked(topology: Topology, widths: Tensor) -> Episodes:
    count = len(widths)
    ratios = (1 - widths / topology.full_widths()).unsqueeze(0)
    active = torch.ones(1, count, dtype=torch.bool)
    return Episodes(torch.ones(1, count, 12), ratios, active, torch.full((1, count), -20.0), widths)


@pytest.mark.parametrize(("bias", "walled"), [(-1.0, False), (20.0, True)])
def test_amc_remembers_the_states_that_it_acted_on(
    resnet20_topology: Topology, monkeypatch: pytest.MonkeyPatch, bias: float, walled: bool
) -> None:
    agent = agent_of("amc", resnet20_topology, ddpg={"warmup": 0, "noise": 1e-9})
    torch.nn.init.normal_(agent.ddpg.policy.heads.actor[-2].weight, std=0.3)
    torch.nn.init.constant_(agent.ddpg.policy.heads.actor[-2].bias, bias)
    seen: list[Tensor] = []
    with monkeypatch.context() as patched:
        state_of = agent._state
        patched.setattr(agent, "_state", lambda *now: seen.append(state_of(*now)) or seen[-1])
        ratios = agent.propose(torch.ones(1, 12), GENERATOR)
    full = resnet20_topology.full_widths()
    widths = ((1 - ratios) * full).round().long()
    wanted = (agent.ddpg.policy.heads.actor(torch.cat(seen))[:, 0] * full).round()
    assert (widths[0] < wanted).any() == walled
    agent.learn(walked(resnet20_topology, widths), 0.5, GENERATOR, lambda loss: None)
    replay = agent.ddpg.replay
    assert len(replay) == 12
    torch.testing.assert_close(replay.of_state[:12], torch.cat(seen))
    torch.testing.assert_close(replay.of_action[:12, 0], widths[0] / full)
    assert torch.equal(replay.of_next_state[:11], replay.of_state[1:12])
    assert replay.of_terminal[:12].tolist() == [0.0] * 11 + [1.0]
    assert replay.of_reward[:12].tolist() == pytest.approx([-0.2] * 12)


def test_amc_learns_from_the_network_that_was_evaluated(resnet20_topology: Topology) -> None:
    """Where the environment has scaled a proposal, the states are those of a walk to what it was scaled to."""
    agent = agent_of("amc", resnet20_topology)
    full = resnet20_topology.full_widths()
    widths = (full * torch.linspace(0.3, 0.9, 12)).round().long()
    agent.learn(walked(resnet20_topology, widths.unsqueeze(0)), 0.5, GENERATOR, lambda loss: None)
    states = agent.ddpg.replay.of_state[:12]
    whole = resnet20_topology.macs()
    costs = [resnet20_topology.macs(torch.cat([widths[:group], full[group:]])) for group in range(12)]
    torch.testing.assert_close(states[:, 8], torch.tensor([1 - float(cost) / whole for cost in costs]))
    torch.testing.assert_close(states[:, 10], torch.cat([torch.ones(1), (widths / full)[:-1]]))


def test_agmc_decodes_an_episode_as_it_was_played(resnet20_topology: Topology) -> None:
    agent = agent_of("agmc", resnet20_topology)
    policy, actions = agent.ddpg.policy, torch.rand(3, 12)
    walk, states = policy.start(3), []
    for group in range(12):
        states.append(walk.state)
        walk.step(actions[:, group : group + 1])
    batch = {"actions": actions, "reward": torch.tensor([1.0, 2.0, 3.0])}
    steps, following = policy.transitions(batch), policy.next_states(batch)
    torch.testing.assert_close(steps.states, torch.stack(states, 1).flatten(0, 1))
    torch.testing.assert_close(following.view(3, 12, -1)[:, :-1], steps.states.view(3, 12, -1)[:, 1:])
    assert steps.rewards.view(3, 12)[:, 4].tolist() == [1.0, 2.0, 3.0]
    assert steps.terminal.view(3, 12).sum(1).tolist() == [1.0, 1.0, 1.0]
    assert steps.states.std(0).sum() > 0  # the action decides where the walk goes


def test_an_episode_that_did_not_reach_the_budget_goes_on_uniformly(resnet20_topology: Topology) -> None:
    agent = agent_of("agmc", resnet20_topology)
    kept = torch.ones(2, 12)
    kept[1] = 0.9
    first, second = agent.propose(kept, torch.Generator().manual_seed(0))
    assert first.max() < 0.3 and torch.equal(second, torch.full((12,), 1 - 1e-6))


def test_the_graphs_memory_holds_every_step_of_episodes_that_end_at_different_times(
    resnet20_topology: Topology,
) -> None:
    """The first is over after one step, the second after two; what stands where no episode was is not remembered."""
    agent = agent_of("gnnrl_ddpg", resnet20_topology)
    full, groups = resnet20_topology.full_widths(), 12
    halfway, nowhere = torch.full((groups,), 0.75), torch.full((groups,), 0.123)
    observations = torch.stack([torch.ones(2, groups), torch.stack([nowhere, halfway])])
    ratios = torch.stack([torch.full((groups,), value) for value in (0.5, 0.25, 0.123, 0.4)]).view(2, 2, groups)
    active = torch.tensor([[True, True], [False, True]])
    rewards = torch.tensor([[-30.0, 0.0], [0.0, -10.0]])
    widths = torch.stack([full // 2, full // 4])
    agent.learn(Episodes(observations, ratios, active, rewards, widths), 0.5, GENERATOR, lambda loss: None)
    replay = agent.ddpg.replay
    assert len(replay) == 3  # both first steps, then the second of the second episode
    assert torch.equal(replay.of_kept[:3], torch.stack([torch.ones(groups), torch.ones(groups), halfway]))
    assert replay.of_ratios[:3, 0].tolist() == pytest.approx([0.5, 0.25, 0.4])
    assert torch.equal(replay.of_next_kept[:3], torch.stack([widths[0] / full, halfway, widths[1] / full]))
    assert replay.of_terminal[:3].tolist() == [1.0, 0.0, 1.0]
    assert replay.of_reward[:3].tolist() == pytest.approx([-0.3, -0.1, -0.1])


def test_only_the_end_of_an_episode_is_rewarded(resnet20_topology: Topology) -> None:
    """Less the baseline, a step in between would earn something, and long episodes more."""
    agent = agent_of("gnnrl_ddpg", resnet20_topology)
    batch = {
        "kept": torch.ones(2, 12),
        "ratios": torch.rand(2, 12),
        "next_kept": torch.full((2, 12), 0.5),
        "reward": torch.tensor([0.3, 0.3]),
        "terminal": torch.tensor([0.0, 1.0]),
    }
    assert agent.ddpg.policy.transitions(batch).rewards.tolist() == pytest.approx([0.0, 0.3])
