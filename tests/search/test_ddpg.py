"""The update is torchrl's; exploration is scipy's; the memory keeps the last rows."""

import copy

import pytest
import torch
from scipy.stats import truncnorm
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import DDPGLoss

from gnnrl_lightning.searching.ddpg import DDPG, Heads, Transitions, losses, truncated_normal
from gnnrl_lightning.searching.replay import Replay

SIZE, ACTIONS, ROWS = 4, 2, 32
FOLLOWING = torch.randn(ROWS, SIZE, generator=torch.Generator().manual_seed(9))


class Critic(nn.Module):
    """The critic as a module of its own, as torchrl wants it."""

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.of_state, self.of_action, self.value = heads.of_state, heads.of_action, heads.value

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.value(self.of_state(observation) + self.of_action(action))


def steps(seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(ROWS, SIZE, generator=generator)
    terminal = (torch.rand(ROWS, generator=generator) < 0.3).float()
    actions = torch.rand(ROWS, ACTIONS, generator=generator)
    return Transitions(states, actions, torch.randn(ROWS, generator=generator), terminal)


def heads(seed: int = 0) -> Heads:
    torch.manual_seed(seed)
    made = Heads(SIZE, ACTIONS, 16)
    for parameter in made.parameters():  # the last layers start near 0, where a wrong gradient would hardly show
        nn.init.normal_(parameter, std=0.5)
    return made


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_losses_are_torchrls(gamma: float) -> None:
    ours, theirs, target, of = heads(), heads(), heads(1), steps()
    found = losses(ours, target, of, FOLLOWING, gamma)
    (found["critic_loss"] + found["actor_loss"]).backward()

    loss = DDPGLoss(
        TensorDictModule(theirs.actor, in_keys=["observation"], out_keys=["action"]),
        TensorDictModule(Critic(theirs), in_keys=["observation", "action"], out_keys=["state_action_value"]),
        loss_function="l2",
        delay_actor=True,
        delay_value=True,
    )
    loss.make_value_estimator(loss.default_value_estimator, gamma=gamma)
    for name, module in (("actor", target.actor), ("value", Critic(target))):
        delayed = getattr(loss, f"target_{name}_network_params")
        source = dict(module.named_parameters())
        for key in delayed.keys(include_nested=True, leaves_only=True):
            delayed[key].data.copy_(source[".".join(key[1:] if isinstance(key, tuple) else (key,))])
    batch = {
        "observation": of.states,
        "action": of.actions,
        ("next", "observation"): FOLLOWING,
        ("next", "reward"): of.rewards.unsqueeze(1),
        ("next", "terminated"): of.terminal.bool().unsqueeze(1),
        ("next", "done"): of.terminal.bool().unsqueeze(1),
    }
    expected = loss(TensorDict(batch, [ROWS]))
    torch.testing.assert_close(found["critic_loss"], expected["loss_value"])
    (expected["loss_value"] + expected["loss_actor"]).backward()
    wanted = {id(theirs.actor): loss.actor_network_params, id(theirs): loss.value_network_params}
    for module, prefix in ((ours.actor, id(theirs.actor)), (Critic(ours), id(theirs))):
        for name, parameter in module.named_parameters():
            keys = [key for key in wanted[prefix].keys(True, True) if _dotted(key).endswith(name)]
            assert len(keys) == 1 and parameter.grad is not None and parameter.grad.abs().sum() > 0
            torch.testing.assert_close(parameter.grad, wanted[prefix][keys[0]].grad)


def _dotted(key: str | tuple[str, ...]) -> str:
    return ".".join(key) if isinstance(key, tuple) else key


def test_the_actors_gradient_reaches_what_makes_its_states_but_not_the_critic() -> None:
    made, of = heads(), steps()
    encoder = nn.Linear(SIZE, SIZE)
    seen = Transitions(encoder(of.states), of.actions, of.rewards, of.terminal)
    losses(made, heads(1), seen, FOLLOWING, 1.0)["actor_loss"].backward()
    assert encoder.weight.grad is not None and encoder.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in Critic(made).parameters())


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.02, 0.1), (0.97, 0.3), (0.5, 1e-3), (1.0, 0.01), (0.0, 2.0)])
def test_exploration_is_a_truncated_normal(mean: float, std: float) -> None:
    quantiles = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    drawn = truncated_normal(torch.full((200,), mean, dtype=torch.float64), std, quantiles)
    expected = truncnorm.ppf(quantiles.numpy(), (0 - mean) / std, (1 - mean) / std, loc=mean, scale=std)
    torch.testing.assert_close(drawn, torch.from_numpy(expected), atol=1e-7, rtol=1e-6)


def test_exploration_that_has_died_out_is_the_action_itself() -> None:
    quantiles = torch.rand(100, dtype=torch.float64)
    means = torch.linspace(0, 1, 100)
    torch.testing.assert_close(truncated_normal(means, 1e-12, quantiles), means, atol=1e-6, rtol=0)


def test_the_memory_holds_the_last_rows() -> None:
    replay = Replay(4, {"x": (), "y": (2,)})
    for start in range(0, 6, 2):
        rows = torch.tensor([start, start + 1.0])
        replay.add(x=rows, y=rows.unsqueeze(1).expand(2, 2))
    assert len(replay) == 4
    sampled = replay.sample(200, torch.Generator().manual_seed(0))
    assert set(sampled["x"].tolist()) == {2.0, 3.0, 4.0, 5.0}
    assert torch.equal(sampled["y"][:, 0], sampled["x"])
    more = torch.arange(10.0)  # more at once than fit
    replay.add(x=more, y=more.unsqueeze(1).expand(10, 2))
    assert set(replay.sample(200, torch.Generator())["x"].tolist()) == {6.0, 7.0, 8.0, 9.0}


@pytest.mark.parametrize(("planned", "warned"), [(100, True), (101, False), (None, False)])
def test_a_search_that_ends_before_the_warm_up_is_told(
    planned: int | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    learner(planned, warmup=100)
    assert ("episodes=100 are all random" in caplog.text) == warned


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = heads()

    def transitions(self, batch: dict[str, Tensor]) -> Transitions:
        zeros = torch.zeros(len(batch["reward"]), SIZE)
        return Transitions(zeros, batch["action"], batch["reward"], torch.ones(len(zeros)))

    def next_states(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.zeros(len(batch["reward"]), SIZE)


def learner(planned: int | None = None, **changed: float) -> DDPG:
    settings = {"warmup": 2, "noise": 0.5, "noise_decay": 0.5, "gamma": 1.0, "tau": 0.1, "baseline_decay": 0.5}
    replay = Replay(64, {"action": (ACTIONS,), "reward": ()})
    made = DDPG(Plain(), replay, 16, planned, **(settings | {"lr_actor": 1e-3, "lr_critic": 1e-2} | changed))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(64, ACTIONS, generator=generator)
    made.replay.add(action=actions, reward=-(actions - torch.tensor([0.2, 0.9])).abs().sum(1))
    return made


def descend_of(made: DDPG):  # type: ignore[no-untyped-def]
    def descend(loss: Tensor) -> None:
        made.optimizer.zero_grad()
        loss.backward()
        made.optimizer.step()

    return descend


def test_it_reaches_the_best_action_of_a_bandit() -> None:
    made = learner(warmup=0, lr_actor=3e-3)
    made.learn(1, 600, torch.Generator().manual_seed(0), descend_of(made))
    action = made.policy.heads.actor(torch.zeros(1, SIZE))[0]
    assert (action - torch.tensor([0.2, 0.9])).abs().max() < 0.15, action


def test_nothing_is_learned_while_it_warms_up_and_noise_shrinks_after() -> None:
    made = learner()
    before = copy.deepcopy(made.policy.state_dict())
    generator = torch.Generator().manual_seed(0)
    assert made.learn(1, 3, generator, descend_of(made)) == {"sigma": 0.5}
    assert made.warming_up and all(torch.equal(v, before[k]) for k, v in made.policy.state_dict().items())
    sigmas = [made.learn(1, 3, generator, descend_of(made))["sigma"] for _ in range(3)]
    assert not made.warming_up and sigmas == [0.5, 0.25, 0.125]
    assert any(not torch.equal(v, before[k]) for k, v in made.policy.state_dict().items())


def test_targets_follow_slowly_and_the_baseline_is_a_moving_average() -> None:
    made = learner(warmup=0)
    start = copy.deepcopy(made.target.state_dict())
    made.learn(1, 1, torch.Generator().manual_seed(0), descend_of(made))
    for name, value in made.target.state_dict().items():
        torch.testing.assert_close(value, 0.9 * start[name] + 0.1 * made.policy.state_dict()[name])
    again = torch.Generator().manual_seed(0)
    means = [made.replay.sample(16, again)["reward"].mean() for _ in range(2)]
    assert made.baseline == pytest.approx(float(means[0]))
    replayed = learner(warmup=0)
    replayed.learn(1, 2, torch.Generator().manual_seed(0), descend_of(replayed))
    assert replayed.baseline == pytest.approx(0.5 * float(means[0]) + 0.5 * float(means[1]))
