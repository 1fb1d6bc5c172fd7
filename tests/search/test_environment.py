import re

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from searching import bandit
from torch import Tensor

from gnnrl_lightning.cost.params import Params
from gnnrl_lightning.models.resnet_cifar import resnet_cifar
from gnnrl_lightning.problem.environment import BELOW_ONE, PruningEnv
from gnnrl_lightning.topology import Topology, trace

MAX_STEPS = 3


def no_reward(widths: Tensor) -> float:
    return 0.0


def play(env: PruningEnv, ratios: list[Tensor]) -> Tensor:
    """The widths that episodes side by side end at; ratios[t] is [B, G]."""
    count = len(ratios[0])
    kept = torch.ones(count, len(env.full_widths), dtype=torch.float64)
    active = torch.ones(count, dtype=torch.bool)
    final = torch.zeros(count, len(env.full_widths), dtype=torch.long)
    for step, action in enumerate(ratios):
        after, widths, done = env.advance(kept, action, step)
        final[active & done] = widths[active & done]
        kept = torch.where(active.unsqueeze(1), after, kept)
        active = active & ~done
    assert not active.any(), "an episode goes on after max_steps"
    return final


def draws(kind: str, groups: int, episodes: int = 300) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    ratios = [torch.rand(episodes, groups, generator=generator) for _ in range(MAX_STEPS)]
    if kind == "tiny":
        return [ratio * 1e-3 for ratio in ratios]
    if kind == "near one":
        return [1 - ratio * 1e-7 for ratio in ratios]
    if kind == "few groups":
        return [ratio * (torch.rand(ratio.shape, generator=generator) < 0.1) for ratio in ratios]
    if kind == "none":
        return [torch.zeros_like(ratio) for ratio in ratios]
    return ratios


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("kind", ["any", "tiny", "near one", "few groups", "none"])
def test_every_episode_lands_on_the_budget(resnet56_topology: Topology, kind: str, budget: float) -> None:
    env = PruningEnv(resnet56_topology, resnet56_topology.macs, budget, no_reward, MAX_STEPS)
    widths = play(env, draws(kind, len(env.full_widths)))
    share = resnet56_topology.macs(widths) / resnet56_topology.macs()
    assert share.max() <= budget
    assert share.min() >= budget - 0.005
    assert (widths >= env.min_widths).all() and (widths <= env.full_widths).all()
    if kind == "any":
        assert len(widths.unique(dim=0)) == len(widths)


def test_what_is_close_below_the_budget_stays_as_it_was_asked_for(resnet56_topology: Topology) -> None:
    env = PruningEnv(resnet56_topology, resnet56_topology.macs, 0.5, no_reward, MAX_STEPS)
    landed = play(env, draws("any", len(env.full_widths), 20))
    close = landed[env.allowed - env.cost(landed) > 0]
    assert len(close) > 5
    assert torch.equal(play(env, [1 - close / env.full_widths]), close)


def test_parameters_can_be_the_cost(resnet56_topology: Topology) -> None:
    env = PruningEnv(resnet56_topology, Params(resnet56_topology), 0.5, no_reward, MAX_STEPS)
    widths = play(env, draws("any", len(env.full_widths), 50))
    share = resnet56_topology.parameters(widths) / resnet56_topology.parameters()
    assert share.max() <= 0.5 and share.min() >= 0.495


@pytest.mark.parametrize("min_keep", [0.0, 0.3])
def test_widths_are_allowed_ones(min_keep: float) -> None:
    topology = trace(resnet_cifar(20, 10), torch.zeros(1, 3, 32, 32), divisor=8, min_keep=min_keep)
    env = PruningEnv(topology, topology.macs, 0.6, no_reward, MAX_STEPS)
    for widths in play(env, draws("any", len(env.full_widths), 100)).tolist():
        for width, group in zip(widths, topology.groups, strict=True):
            assert width in group.widths()
            assert width % 8 == 0 or width == group.width
            assert width >= min_keep * group.width


def test_the_whole_network_is_within_a_budget_of_one(resnet20_topology: Topology) -> None:
    env = bandit(resnet20_topology, budget=1.0)
    _, widths, done = env.advance(torch.ones(1, 12, dtype=torch.float64), torch.full((1, 12), 0.5), 0)
    assert done.all() and resnet20_topology.macs(widths[0]) >= 0.995 * resnet20_topology.macs()


def test_infeasible_budget_names_one_that_is_not(resnet20_topology: Topology) -> None:
    with pytest.raises(ValueError, match=r"budget=0\.001 ") as error:
        bandit(resnet20_topology, budget=0.001)
    found = re.search(r"lowest feasible budget of this network is ([\d.]+\d)", str(error.value))
    assert found, error.value
    lowest = float(found[1])
    widths = play(bandit(resnet20_topology, lowest, MAX_STEPS), draws("any", 12, 20))
    assert (resnet20_topology.macs(widths) <= lowest * resnet20_topology.macs()).all()
    with pytest.raises(ValueError, match="lowest feasible"):
        bandit(resnet20_topology, lowest - 1e-4)


def test_ratios_compound_over_steps(resnet20_topology: Topology) -> None:
    env = bandit(resnet20_topology, budget=0.2)
    kept = torch.ones(1, 12, dtype=torch.float64)
    for step, ratio in enumerate((0.1, 0.2)):
        kept, widths, done = env.advance(kept, torch.full((1, 12), ratio), step)
        assert not done.any()
    torch.testing.assert_close(kept, torch.full((1, 12), 0.9 * 0.8, dtype=torch.float64))
    expected = (0.9 * 0.8 * resnet20_topology.full_widths()).round().long()
    assert torch.equal(widths[0], expected)


def test_an_action_that_overshoots_keeps_its_proportions(resnet20_topology: Topology) -> None:
    """Scaled by one factor s: 1 − s·ratio of each group, but for the rounding to whole channels."""
    env = bandit(resnet20_topology, budget=0.5)
    ratios = torch.linspace(0.4, 0.9, 12).unsqueeze(0)
    _, widths, done = env.advance(torch.ones(1, 12, dtype=torch.float64), ratios, 0)
    assert done.all()
    full = env.full_widths
    removed = (1 - widths[0] / full) / ratios[0]
    s = float(removed.median())
    assert 0.3 < s < 1
    assert ((removed - s).abs() * ratios[0] * full <= 1.5).all()


def test_one_episode_is_a_batch_of_one(resnet20_topology: Topology) -> None:
    env, twin = bandit(resnet20_topology, budget=0.3), bandit(resnet20_topology, budget=0.3)
    generator = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    assert (observation == 1).all()
    kept, steps, over = torch.ones(1, 12, dtype=torch.float64), 0, False
    while not over:
        action = (0.3 * generator.random(12)).astype(np.float32)
        observation, reward, over, truncated, info = env.step(action)
        kept, widths, done = twin.advance(kept, torch.from_numpy(action).unsqueeze(0), steps)
        steps += 1
        assert np.array_equal(observation, kept[0].float().numpy())
        assert info == {"widths": widths[0].tolist(), "cost": int(resnet20_topology.macs(widths[0]))}
        assert over == bool(done[0]) and not truncated
        assert reward == (twin.reward(widths[0]) if over else 0.0)
    assert steps > 1 and info["cost"] <= env.allowed
    assert (env.reset()[0] == 1).all()


def test_it_is_a_gymnasium_environment(resnet20_topology: Topology) -> None:
    check_env(bandit(resnet20_topology), skip_render_check=True)


def test_a_reward_is_computed_once(resnet20_topology: Topology) -> None:
    asked = []

    def evaluate(widths: Tensor) -> float:
        asked.append(widths.tolist())
        return -float(len(asked))

    env = bandit(resnet20_topology, evaluate=evaluate)
    one, other = env.min_widths, env.full_widths
    assert [env.reward(w) for w in (one, other, one.clone(), other)] == [-1.0, -2.0, -1.0, -2.0]
    assert asked == [one.tolist(), other.tolist()]


def test_ratio_of_one_is_taken_as_just_below(resnet20_topology: Topology) -> None:
    env = bandit(resnet20_topology, budget=0.5)
    start = torch.ones(2, 12, dtype=torch.float64)
    _, ones, _ = env.advance(start, torch.ones(2, 12), 0)
    _, below, _ = env.advance(start, torch.full((2, 12), BELOW_ONE), 0)
    assert torch.equal(ones, below)


@pytest.mark.parametrize("kind", ["any", "few groups"])
def test_an_episode_does_not_depend_on_those_beside_it(resnet56_topology: Topology, kind: str) -> None:
    env = PruningEnv(resnet56_topology, resnet56_topology.macs, 0.5, no_reward, MAX_STEPS)
    ratios = draws(kind, len(env.full_widths), 40)
    together = play(env, ratios)
    for row in range(40):
        alone = play(env, [action[row : row + 1] for action in ratios])
        assert torch.equal(alone[0], together[row])
