import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Independent, Normal, SigmoidTransform, TransformedDistribution
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate

from gnnrl_lightning.nn.actor_critic import SquashedNormal
from gnnrl_lightning.searching.ppo import clipped_objective, generalized_advantage, standardize

GROUPS = 5
STD = 0.5


def random_episodes(seed: int, steps: int = 6, count: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and activity [T, B] of episodes of 1 to `steps` steps."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(steps, count, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = torch.randint(1, steps + 1, (count,), generator=generator)
    lengths[:2] = torch.tensor([1, steps])
    return rewards, values, torch.arange(steps).unsqueeze(1) < lengths


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (1.0, 0.5)])
def test_advantages_are_torchrls(gamma: float, lam: float) -> None:
    rewards, values, active = random_episodes(0)
    advantages, returns = generalized_advantage(rewards, values, active, gamma, lam)
    over = torch.ones_like(active)  # after its last step an episode is over, and stays so
    over[:-1] = ~active[1:]
    shaped = [x.T.unsqueeze(-1) for x in (values, torch.cat([values[1:], torch.zeros(1, 9)]), rewards, over, over)]
    expected, targets = generalized_advantage_estimate(gamma, lam, *shaped)
    torch.testing.assert_close(advantages[active], expected.squeeze(-1).T[active])
    torch.testing.assert_close(returns[active], targets.squeeze(-1).T[active])
    assert (advantages[~active] == 0).all() and (returns[~active] == 0).all()


def test_without_discount_the_return_is_the_final_reward() -> None:
    _, values, active = random_episodes(1)
    rewards = torch.zeros_like(values)
    last = active.sum(0) - 1
    rewards[last, torch.arange(9)] = torch.arange(9.0, dtype=torch.float64)
    _, returns = generalized_advantage(rewards, values, active, 1.0, 1.0)
    torch.testing.assert_close(returns, torch.arange(9.0, dtype=torch.float64).expand_as(values) * active)


class Policy(nn.Module):
    """A linear mean in front of torch's own squashed normal, as torchrl wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(3, GROUPS)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(observation)
        return mean, torch.full_like(mean, STD)


def squashed(loc: Tensor, scale: Tensor) -> TransformedDistribution:
    return TransformedDistribution(Independent(Normal(loc, scale), 1), [SigmoidTransform()])


@pytest.mark.parametrize("clip", [0.1, 0.2])
def test_objective_is_torchrls(clip: float) -> None:
    torch.manual_seed(0)
    policy = Policy()
    observation, advantage = torch.randn(64, 3), torch.randn(64)
    with torch.no_grad():
        old = squashed(*policy(observation))
        ratios = old.sample()
        old_log_prob = old.log_prob(ratios)
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(policy, in_keys=["observation"], out_keys=["loc", "scale"]),
        ProbabilisticTensorDictModule(
            in_keys=["loc", "scale"], out_keys=["action"], distribution_class=squashed, return_log_prob=True
        ),
    )
    loss = ClipPPOLoss(
        actor, None, clip_epsilon=clip, entropy_bonus=False, critic_coeff=None, normalize_advantage=False
    )
    data = TensorDict(
        {
            "observation": observation,
            "action": ratios,
            "action_log_prob": old_log_prob,
            "advantage": advantage.unsqueeze(-1),
        },
        batch_size=[64],
    )
    theirs = loss(data)
    theirs["loss_objective"].backward()
    their_gradient = [parameter.grad.clone() for parameter in loss.parameters() if parameter.grad is not None]

    policy.zero_grad()
    mean, _ = policy(observation)
    log_prob = SquashedNormal(mean, STD * torch.eye(GROUPS)).log_prob(ratios)
    ours = clipped_objective(log_prob, old_log_prob, advantage, clip)
    ours["loss"].backward()
    torch.testing.assert_close(ours["loss"], theirs["loss_objective"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours["clip_fraction"], theirs["clip_fraction"])
    assert 0 < ours["clip_fraction"] < 1
    assert ours["approx_kl"] > 0
    own_gradient = [parameter.grad for parameter in policy.parameters()]
    assert len(their_gradient) == len(own_gradient) == 2
    for own, their in zip(own_gradient, their_gradient, strict=True):
        torch.testing.assert_close(own, their, rtol=1e-4, atol=1e-6)


def test_objective_of_the_policy_that_acted() -> None:
    log_prob = torch.randn(8, requires_grad=True)
    advantage = torch.randn(8)
    parts = clipped_objective(log_prob, log_prob.detach(), advantage, 0.2)
    torch.testing.assert_close(parts["loss"], -advantage.mean())
    assert parts["approx_kl"] == 0 and parts["clip_fraction"] == 0
    parts["loss"].backward()  # the plain policy gradient
    torch.testing.assert_close(log_prob.grad, -advantage / 8)


def test_standardize() -> None:
    values = standardize(torch.tensor([-90.0, -10.0, -50.0, -30.0]))
    torch.testing.assert_close(values.mean(), torch.tensor(0.0))
    torch.testing.assert_close(values.std(), torch.tensor(1.0))
    assert standardize(torch.tensor([3.0])).tolist() == [0.0]
    assert standardize(torch.tensor([3.0, 3.0])).tolist() == [0.0, 0.0]
