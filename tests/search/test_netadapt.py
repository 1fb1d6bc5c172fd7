from pathlib import Path

import pytest
import torch
from searching import agent_of, bandit, run_search, without_time
from torch import Tensor, nn

from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.netadapt import NetAdaptAgent
from gnnrl_lightning.searching.agents.protocol import Episodes
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.topology import Topology, trace

NEVER = torch.Generator()


def no_step(loss: Tensor) -> None:
    raise AssertionError("there is nothing to optimise")


def channels(widths: Tensor) -> Tensor:
    """A cost of which every channel has the same part."""
    return widths.sum(-1)


def candidates(agent: NetAdaptAgent, topology: Topology) -> Tensor:
    """Widths that the agent proposes for whole networks, [G, G]."""
    full = topology.full_widths()
    ratios = agent.propose(torch.ones(len(full), len(full)), NEVER)
    assert (ratios >= 0).all() and (ratios < 1).all()
    return ((1 - ratios) * full).round().long()


def decide(agent: NetAdaptAgent, rewards: list[float], progress: float) -> None:
    """Lets the agent learn from a round with these rewards."""
    steps = torch.ones(1, len(rewards), len(agent.decided))
    active = torch.ones(1, len(rewards), dtype=torch.bool)
    ends = agent.decided.expand_as(steps[0])
    agent.learn(Episodes(steps, steps, active, torch.tensor([rewards]), ends), progress, NEVER, no_step)


@pytest.fixture(scope="module")
def chain() -> Topology:
    """Three groups of 80, 120 and 160 channels."""
    layers = nn.Conv2d(3, 80, 3), nn.ReLU(), nn.Conv2d(80, 120, 3), nn.ReLU(), nn.Conv2d(120, 160, 3)
    return trace(nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(160, 2, 1)), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(("harm", "power"), [((4.0, 1.0, 2.0), 1), ((1.0, 2.0, 4.0), 1), ((2.0, 4.0, 1.0), 2)])
def test_it_finds_the_best_of_a_separable_reward(
    chain: Topology, tmp_path: Path, harm: tuple[float, ...], power: int
) -> None:
    """Channels cost the same, and the harm of removing them adds up or grows: then greedy steps lead to the best."""
    full, weights = chain.full_widths(), torch.tensor(harm)

    def reward(widths: Tensor) -> Tensor:
        return -(weights * (full - widths) ** power).sum(-1)

    env = PruningEnv(chain, channels, 0.5, lambda widths: float(reward(widths)))
    agent = NetAdaptAgent(env.task(list), reduction=0.025, decay=0.96)
    found = run_search(SearchModule(agent, env, 3 * 40, 0, {}), tmp_path)
    first, second = torch.cartesian_prod(*(torch.tensor(group.widths()) for group in chain.groups[:2])).T
    every = torch.stack([first, second, 180 - first - second], -1)
    allowed = every[(every[:, 2] >= 1) & (every[:, 2] <= 160)]
    assert found.best["reward"] == reward(allowed).max()
    assert found.best["widths"] == " ".join(map(str, agent.decided.tolist()))


def test_a_candidate_is_as_much_narrower_as_the_step_asks_for(resnet20_topology: Topology) -> None:
    agent, macs = agent_of("netadapt", resnet20_topology), resnet20_topology.macs
    assert agent.episodes_per_iteration == 12
    whole = resnet20_topology.full_widths()
    tried = candidates(agent, resnet20_topology)
    narrower = whole - tried
    assert torch.equal(narrower, torch.diag(narrower.diag())) and (narrower.diag() > 0).all()
    target = macs() - 0.025 * macs()
    assert (macs(tried) <= target).all()
    assert (macs(tried + torch.eye(12, dtype=torch.long)) > target).all()  # a channel more is too many


def test_what_is_left_is_spread_over_the_rounds_that_are_left(chain: Topology) -> None:
    """The first step is 9 of 360 channels; the other 171 go in three rounds, each step half of the one before."""
    agent = NetAdaptAgent(Task(chain, channels, 180, chain.full_widths(), list), reduction=0.025, decay=0.5)
    sizes = []
    for number, rewards in enumerate(([-2.0, -2.0, -1.0], [-2.0, -2.0, -1.0], [-2.0, -1.0, -2.0], [-1.0, -2.0, -2.0])):
        decide(agent, rewards, progress=(number + 1) * 3 / 14)  # of 14 episodes two are left over
        sizes.append(agent.decided.tolist())
    assert sizes == [[80, 120, 151], [80, 120, 53], [80, 71, 53], [56, 71, 53]]
    assert candidates(agent, chain).tolist() == [[56, 71, 53]] * 3  # there is nothing left to do
    decide(agent, [-1.0, -2.0, -3.0], progress=1.0)
    assert agent.decided.tolist() == [56, 71, 53]


def test_a_group_that_cannot_give_the_step_gives_what_it_can(chain: Topology) -> None:
    def cost(widths: Tensor) -> Tensor:
        return widths[..., 0] + widths[..., 2].clamp(min=120)  # of the second group nothing, of the third a part

    agent = NetAdaptAgent(Task(chain, cost, 130, chain.full_widths(), list), reduction=0.25, decay=0.9)
    assert candidates(agent, chain).tolist() == [[20, 120, 160], [80, 120, 160], [80, 120, 120]]
    decide(agent, [-2.0, -1.0, -3.0], progress=0.5)  # what is no use is no candidate, however good
    assert agent.decided.tolist() == [20, 120, 160]


def test_of_equally_good_groups_the_one_that_keeps_most_is_decided(chain: Topology) -> None:
    """So that groups shrink alike where the reward says nothing."""
    agent = NetAdaptAgent(Task(chain, channels, 180, chain.full_widths(), list), reduction=0.025, decay=0.9)
    decide(agent, [-1.0, -1.0, -1.0], progress=0.1)
    assert agent.decided.tolist() == [80, 120, 151]
    for number in range(1, 10):
        decide(agent, [-1.0, -1.0, -1.0], progress=0.1 * (number + 1))
    kept = agent.decided / chain.full_widths()
    assert agent.decided.sum() == 180 and kept.max() - kept.min() < 0.2


def test_a_round_that_is_cut_short_decides_nothing(chain: Topology) -> None:
    agent = NetAdaptAgent(Task(chain, channels, 180, chain.full_widths(), list), reduction=0.025, decay=0.9)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    decide(agent, [-1.0, -2.0], progress=1.0)
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())


@pytest.mark.parametrize(("episodes", "warned"), [(2, True), (3, False), (None, False)])
def test_a_search_too_short_for_a_round_is_told(
    chain: Topology, caplog: pytest.LogCaptureFixture, episodes: int | None, warned: bool
) -> None:
    NetAdaptAgent(
        PruningEnv(chain, channels, 0.5, lambda widths: 0.0).task(list, episodes), reduction=0.025, decay=0.96
    )
    assert ("a round takes 3" in caplog.text) == warned


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_search_ends_as_the_uninterrupted_one(
    resnet20_topology: Topology, tmp_path: Path, stop_after: int
) -> None:
    def module() -> SearchModule:
        env = bandit(resnet20_topology, budget=0.85)
        return SearchModule(NetAdaptAgent(env.task(list), 0.025, 0.96), env, 55, 3, {})

    whole = run_search(module(), tmp_path / "whole")
    run_search(module(), tmp_path / "stopped", iterations=stop_after)
    resumed = run_search(module(), tmp_path / "stopped")
    assert without_time(resumed.history) == without_time(whole.history)
    for name, value in whole.agent.state_dict().items():
        assert torch.equal(resumed.agent.state_dict()[name], value), name
    assert whole.agent.rounds == 4 and resnet20_topology.macs(whole.agent.decided) <= whole.env.allowed
    best = [max(row["reward"] for row in whole.history[start : start + 12]) for start in range(0, 48, 12)]
    assert best[3] > best[0] > whole.env.reward(whole.env.task(list).uniform)
    assert all(row["cached"] for row in whole.history[48:])  # the rest of the episodes proposes what was found


@pytest.mark.parametrize("setting", ["reduction", "decay"])
def test_settings_out_of_range_are_refused(resnet20_topology: Topology, setting: str) -> None:
    with pytest.raises(ValueError, match=rf"agent\.{setting}=1\.0 must be a number above 0 and below 1"):
        agent_of("netadapt", resnet20_topology, **{setting: 1.0})
