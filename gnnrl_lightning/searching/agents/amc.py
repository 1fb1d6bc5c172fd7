"""AMC: DDPG from layer to layer on hand-made features (He et al., ECCV 2018)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import require_whole, require_within
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.protocol import Descend, Episodes
from gnnrl_lightning.searching.agents.start import DrawsNear
from gnnrl_lightning.searching.ddpg import DDPG, Heads, Transitions
from gnnrl_lightning.searching.replay import Replay
from gnnrl_lightning.topology.layer_features import layer_features


class AMCAgent(DrawsNear):
    """Walks through the groups in the order of the network and decides what fraction each keeps.

    Our reading, where AMC has layers in a chain: a channel group is a layer, described by the layer that makes its
    channels. An action beyond the wall (`_wall`) is cut off there, so that the budget is met by construction. A network
    that is below it the environment scales back up, which AMC's does not; what is learned from is the network that was
    evaluated. Of the features, "rest" is what this group and those behind could still remove, not the cost that they
    have: with groups it is what the wall reckons with. Height and width are of the layer's output; with its stride they
    say what those of the input would. AMC's least squares after pruning is left to `recovery`.

    Args:
        task: Groups, cost and budget.
        min_keep: Fraction that each group keeps at least where the environment does not ask for more (AMC: 0.2).
        hidden_size: Of actor and critic (AMC: 300).
        batch_size: Transitions of an update (AMC: 64).
        replay_episodes: Episodes that the replay memory holds (AMC: 100).
        ddpg: The rest of `DDPG`.
    """

    episodes_per_iteration = 1
    """AMC learns after every episode."""

    def __init__(
        self, task: Task, min_keep: float, hidden_size: int, batch_size: int, replay_episodes: int, ddpg: dict
    ):
        super().__init__(len(task.topology.groups))
        require_whole("agent.hidden_size", hidden_size, 1)
        require_whole("agent.batch_size", batch_size, 1)
        require_whole("agent.replay_episodes", replay_episodes, 1)
        require_within("agent.min_keep", min_keep, 0, 1)
        self.task = task
        self.full = task.topology.full_widths()
        self.whole = float(task.cost(self.full))
        allowed = [[w for w in group.widths() if w >= min_keep * group.width] for group in task.topology.groups]
        self.widths = [torch.tensor(each) for each in allowed]
        self.lowest = torch.tensor([each[0] for each in allowed])
        features = layer_features(task.topology)
        place = torch.arange(len(features)).unsqueeze(1)
        self.features = _scaled(torch.cat([place, features], 1))
        groups, size = len(self.full), self.features.shape[1] + 3
        policy = _Layers(Heads(size, 1, hidden_size))
        shapes = {"state": (size,), "action": (1,), "next_state": (size,), "reward": (), "terminal": ()}
        self.ddpg = DDPG(policy, Replay(replay_episodes * groups, shapes), batch_size, task.episodes, **ddpg)

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Explored ratios of every group, decided one after the other, [B, G]."""
        now = (observations.cpu() * self.full).round().long()
        decided, previous = now.clone(), torch.ones(len(now))
        near = self.near(len(now), generator) if self.has_plan and self.ddpg.warming_up else None
        for group in range(len(self.full)):
            if near is not None:
                action = near[:, group]
            elif self.ddpg.warming_up:
                action = torch.rand(len(now), generator=generator)
            else:
                state = self._state(now, decided, previous, group).to(observations)
                action = self.ddpg.explore(self.ddpg.policy.heads.actor(state), generator).squeeze(1).cpu()
            wanted = (action * self.full[group]).round().long()
            decided[:, group] = self._wall(now, decided, group, wanted)
            previous = decided[:, group] / self.full[group]
        return (1 - decided / now).to(observations)

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """Every decision of an episode earns its final reward; one update for each group."""
        ends = torch.cat([episodes.observations[1:], (episodes.widths / self.full).unsqueeze(0)])
        ends = torch.where(episodes.last.unsqueeze(-1), episodes.widths / self.full, ends)[episodes.active]
        rewards = (episodes.rewards.sum(0) / 100).expand(episodes.active.shape)[episodes.active]
        now = (episodes.observations[episodes.active] * self.full).round().long()
        then = (ends * self.full).round().long()
        decided, previous, states = now.clone(), torch.ones(len(now)), []
        for group in range(len(self.full)):
            states.append(self._state(now, decided, previous, group))
            decided[:, group] = then[:, group]
            previous = ends[:, group]
        following = [*states[1:], torch.zeros_like(states[0])]
        for group, (state, next_state) in enumerate(zip(states, following, strict=True)):
            terminal = torch.full_like(rewards, group == len(states) - 1)
            action = ends[:, group : group + 1]
            self.ddpg.replay.add(state=state, action=action, next_state=next_state, reward=rewards, terminal=terminal)
        count = episodes.rewards.shape[1]
        return self.ddpg.learn(count, count * len(self.full), generator, descend)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam of actor and critic."""
        return self.ddpg.optimizer

    def _state(self, now: Tensor, decided: Tensor, previous: Tensor, group: int) -> Tensor:
        """The eleven features of a group, [B, 11]: eight of its layer; what is reduced, what is left, the last action.

        Args:
            now: Widths at the start of the walk, [B, G].
            decided: The same with what the walk has decided so far, [B, G].
            previous: Fraction that the group before keeps, [B].
            group: Whose turn it is.
        """
        lowest = decided.clone()
        lowest[:, group:] = torch.minimum(self.lowest, decided)[:, group:]
        cost = self.task.cost(torch.stack([now, decided, lowest])) / self.whole
        dynamic = [cost[0] - cost[1], cost[1] - cost[2], previous]
        return torch.cat([self.features[group].expand(len(now), -1), torch.stack(dynamic, 1)], 1).float()

    def _wall(self, now: Tensor, decided: Tensor, group: int, wanted: Tensor) -> Tensor:
        """What a group may keep: at most so much that the groups behind it can still meet the budget (AMC, alg. 1).

        Args:
            now: Widths at the start of the walk, [B, G].
            decided: The same with what the walk has decided so far, [B, G].
            group: Whose turn it is.
            wanted: Channels that the actor wants it to keep, [B].
        """
        choices = self.widths[group]
        trial = decided.clone()
        trial[:, group + 1 :] = torch.minimum(self.lowest, now)[:, group + 1 :]
        trial = trial.unsqueeze(1).repeat(1, len(choices), 1)
        trial[:, :, group] = choices
        possible = (self.task.cost(trial) <= self.task.allowed) & (choices <= wanted.unsqueeze(1))
        best = torch.where(possible, choices, choices[0]).amax(1)
        return torch.minimum(best, now[:, group])


class _Layers(nn.Module):
    """The policy on states that are features: the replay memory holds them as they are."""

    def __init__(self, heads: Heads):
        super().__init__()
        self.heads = heads

    def transitions(self, batch: Mapping[str, Tensor]) -> Transitions:
        return Transitions(batch["state"], batch["action"], batch["reward"], batch["terminal"])

    def next_states(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["next_state"]


def _scaled(rows: Tensor) -> Tensor:
    """Every column from 0 to 1; one that is the same in all rows is 0."""
    low, high = rows.amin(0), rows.amax(0)
    return (rows - low) / torch.where(high > low, high - low, 1)
