from pathlib import Path

import pytest
import torch
from searching import AGENTS, agent_of, bandit, run_search
from torch import Tensor

from gnnrl_lightning.searching.agents.protocol import Episodes
from gnnrl_lightning.searching.module import SearchModule
from gnnrl_lightning.topology import Topology

GENERATOR = torch.Generator()
NAMES = sorted(path.stem for path in AGENTS.glob("*.yaml"))
SEEDLESS = {"uniform", "netadapt", "global", "closed_form"}


def propose(name: str, topology: Topology, seed: int, batch: int = 4) -> Tensor:
    agent = agent_of(name, topology)
    with torch.no_grad():
        return agent.propose(torch.ones(batch, 12), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_ratios_are_in_range_and_follow_the_seed(resnet20_topology: Topology, name: str) -> None:
    first = propose(name, resnet20_topology, 0, batch=500)
    assert first.shape == (500, 12)
    assert (first >= 0).all() and (first < 1).all()
    torch.rand(3)  # the global generator is nobody's source
    assert torch.equal(first, propose(name, resnet20_topology, 0, batch=500))
    other = propose(name, resnet20_topology, 1, batch=500)
    assert torch.equal(first, other) == (name in SEEDLESS)


def test_uniform_proposes_one_network(resnet20_topology: Topology) -> None:
    ratios = propose("uniform", resnet20_topology, 0)
    _, widths, done = bandit(resnet20_topology).advance(torch.ones(4, 12, dtype=torch.float64), ratios, 0)
    assert done.all() and len(widths.unique(dim=0)) == 1
    kept = widths[0] / resnet20_topology.full_widths()
    assert kept.max() - kept.min() <= 2 / 16  # one channel of the narrowest group up or down


def last_mean(module: SearchModule) -> float:
    rewards = [row["reward"] for row in module.history]
    return sum(rewards[-48:]) / 48


@pytest.mark.parametrize("seed", [0, 1])
def test_the_agent_learns_what_is_rewarded(resnet20_topology: Topology, tmp_path: Path, seed: int) -> None:
    """A reward with a known best action: how near the widths are to a target."""
    searched = {}
    for name in ("random", "gnnrl"):
        agent = agent_of(name, resnet20_topology, seed)
        module = SearchModule(agent, bandit(resnet20_topology), 192, seed, {})
        searched[name] = run_search(module, tmp_path / name)
    random, learned = searched["random"], searched["gnnrl"]
    first = sum(row["reward"] for row in learned.history[:16]) / 16
    assert last_mean(learned) > 0.75 * last_mean(random)  # rewards are negative: a quarter less of the distance
    assert last_mean(learned) > 0.75 * first
    assert learned.best["reward"] > random.best["reward"]


def one_step(rewards: list[float], topology: Topology) -> Episodes:
    """Episodes of one step each, with ratios that differ between them in all groups alike."""
    count = len(rewards)
    ratios = torch.linspace(0.1, 0.6, count).view(1, count, 1).expand(1, count, 12).clone()
    active = torch.ones(1, count, dtype=torch.bool)
    widths = topology.full_widths().repeat(count, 1)
    return Episodes(torch.ones(1, count, 12), ratios, active, torch.tensor([rewards]), widths)


def learned(rewards: list[float], topology: Topology) -> Tensor:
    """Log-probability of each episode's action after learning from them, less that before, [B]."""
    agent = agent_of("gnnrl", topology)
    episodes = one_step(rewards, topology)

    def log_prob() -> Tensor:
        with torch.no_grad():
            mean, _ = agent.policy(episodes.observations[0])
            return agent.policy.distribution(mean, 0.5).log_prob(episodes.ratios[0])

    before = log_prob()
    optimizer = agent.optimizer()

    def descend(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    metrics = agent.learn(episodes, 0.5, GENERATOR, descend)
    assert metrics["approx_kl"] > 0 and 0 <= metrics["clipfrac"] <= 1
    return log_prob() - before


def test_a_better_reward_makes_its_action_likelier(resnet20_topology: Topology) -> None:
    gained = learned([-10.0, -30.0, -30.0, -30.0], resnet20_topology)
    assert gained[0] > 0 > gained[3]


def test_a_reward_of_zero_is_a_reward(resnet20_topology: Topology) -> None:
    """A network without any error is the best there is, and not one that was never measured."""
    gained = [learned([best, -2.0, -90.0, -90.0], resnet20_topology) for best in (0.0, -1e-3)]
    torch.testing.assert_close(*gained, rtol=0.05, atol=0.05)


def test_the_policy_that_acted_is_where_an_update_starts(resnet20_topology: Topology) -> None:
    """At the first of the epochs every probability ratio is 1, so the loss is minus the mean advantage, which is 0."""
    agent = agent_of("gnnrl", resnet20_topology, ppo_epochs=1, critic_coeff=0.0)
    losses: list[float] = []
    metrics = agent.learn(
        one_step([-10.0, -20.0, -30.0], resnet20_topology), 0.5, GENERATOR, lambda loss: losses.append(loss.item())
    )
    assert losses == pytest.approx([0.0], abs=1e-6)
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6) and metrics["clipfrac"] == 0


def test_exploration_shrinks_over_the_search(resnet20_topology: Topology) -> None:
    agent = agent_of("gnnrl", resnet20_topology, action_std=0.8, final_action_std=0.2, ppo_epochs=1)
    episodes = one_step([-10.0, -20.0], resnet20_topology)
    stds = [agent.learn(episodes, progress, GENERATOR, lambda loss: None)["action_std"] for progress in (0.0, 0.5, 1.0)]
    assert stds == pytest.approx([0.8, 0.4, 0.2])


def test_the_encoder_does_not_depend_on_the_network(resnet20_topology: Topology, resnet56_topology: Topology) -> None:
    """But for its pooling weights (eq. 5), so that it can be carried over."""
    small, large = (
        agent_of("gnnrl", topology).policy.encoder.state_dict() for topology in (resnet20_topology, resnet56_topology)
    )
    assert small.keys() == large.keys()
    differ = {name for name in small if small[name].shape != large[name].shape}
    assert differ and all("pool" in name or name == "_full" for name in differ), differ


@pytest.mark.parametrize("budget", [0.3, 0.5])
def test_a_policy_that_removes_nearly_all_stays_finite(resnet20_topology: Topology, budget: float) -> None:
    """Ratios must not compound below what groups keep at least: a width of 0 has no logarithm."""
    agent = agent_of("gnnrl", resnet20_topology)
    agent.policy.offset.data[::2] = 5.0
    env, generator = bandit(resnet20_topology, budget), torch.Generator().manual_seed(0)
    kept = torch.ones(64, len(resnet20_topology.groups), dtype=torch.float64)
    for step in range(env.max_steps):
        ratios = agent.propose(kept.float(), generator)
        assert torch.isfinite(ratios).all()
        kept, widths, _ = env.advance(kept, ratios, step)
        assert (widths >= env.min_widths).all()
        assert torch.isfinite(agent.policy(kept.float())[1]).all()


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("amc", {"min_keep": 1.5}, r"agent\.min_keep=1\.5 must be in \[0, 1\]"),
        ("agmc", {"warmup_ratio": 0.0}, r"agent\.warmup_ratio=0\.0 must be in \(0, 1\]"),
        ("gnnrl_ddpg", {"warmup_ratio": 2.0}, r"agent\.warmup_ratio=2\.0 must be in \(0, 1\]"),
        ("amc", {"ddpg": {"tau": 1.5}}, r"agent\.ddpg\.tau=1\.5 must be in \[0, 1\]"),
        ("amc", {"ddpg": {"warmup": -1}}, r"agent\.ddpg\.warmup=-1 must be a whole number of at least 0"),
        ("amc", {"ddpg": {"noise": 0}}, r"agent\.ddpg\.noise=0 must be a number above 0"),
        ("gnnrl", {"ppo_epochs": 0}, r"agent\.ppo_epochs=0 must be a whole number of at least 1"),
        ("gnnrl", {"hidden_size": 0}, r"agent\.hidden_size=0 must be a whole number of at least 1"),
        ("gnnrl", {"episodes_per_iteration": 1}, r"agent\.episodes_per_iteration=1 must be a whole number of at"),
        ("gnnrl", {"action_std": 0}, r"agent\.action_std=0 must be a number above 0"),
        ("gnnrl", {"final_action_std": 0}, r"agent\.final_action_std=0 must be a number above 0"),
        ("gnnrl", {"initial_ratio": 1}, r"agent\.initial_ratio=1 must be a number above 0 and below 1"),
        ("gnnrl", {"clip_epsilon": -1}, r"agent\.clip_epsilon=-1 must be a number above 0"),
        ("gnnrl", {"lr": -1}, r"agent\.lr=-1 must be a number above 0"),
        ("gnnrl", {"offset_lr": 0}, r"agent\.offset_lr=0 must be a number above 0"),
        ("gnnrl", {"gamma": 2}, r"agent\.gamma=2 must be in \[0, 1\]"),
        ("gnnrl", {"coupling": "much"}, r"agent\.coupling=much must be in \[0, inf\]"),
        ("gnnrl", {"correlation": -3}, r"agent\.correlation=-3 must be in \[0, 0\.99\]"),
        ("gnnrl", {"encoder": {"num_layers": 0}}, r"agent\.encoder\.num_layers=0 must be a whole number"),
        ("random", {"episodes_per_iteration": 0}, r"agent\.episodes_per_iteration=0 must be a whole number"),
        ("random", {"max_ratio": 0.0}, r"agent\.max_ratio=0\.0 must be in \(0, 1\]"),
    ],
)
def test_settings_out_of_range(resnet20_topology: Topology, name: str, changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent_of(name, resnet20_topology, **changed)
