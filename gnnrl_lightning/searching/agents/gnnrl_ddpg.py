"""The ablation of GNN-RL (ICML 2022): its multi-stage graph embedding with DDPG in place of PPO."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError, require_whole
from gnnrl_lightning.nn.encoder import GraphEncoder
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.protocol import Descend, Episodes
from gnnrl_lightning.searching.agents.start import DrawsNear
from gnnrl_lightning.searching.ddpg import DDPG, Heads, Transitions
from gnnrl_lightning.searching.replay import Replay
from gnnrl_lightning.topology.hierarchy import hierarchical_graph


class GNNRLDDPGAgent(DrawsNear):
    """One action for all groups at once from the network's embedding, step by step until the budget is met.

    Our reading: the paper does not say how its ablation was set up. The encoder learns with the actor and the critic;
    exploration, targets and memory are AMC's, the warm-up is AGMC's. Of a last step, which the environment scales, the
    memory holds the ratios as proposed: scaled or not, they lead to that reward.

    Args:
        task: The network; what it costs, its reward says.
        encoder: Sizes and features of the m-GNN, see `GraphEncoder`.
        hidden_size: Of actor and critic.
        batch_size: Transitions of an update.
        replay_size: Transitions that the replay memory holds.
        updates_per_episode: As many as an episode has steps at most.
        warmup_ratio: Ratios of the warm-up are drawn from U(0, this).
        ddpg: The rest of `DDPG`.
    """

    episodes_per_iteration = 1
    """It learns after every episode."""

    def __init__(
        self,
        task: Task,
        encoder: dict,
        hidden_size: int,
        batch_size: int,
        replay_size: int,
        updates_per_episode: int,
        warmup_ratio: float,
        ddpg: dict,
    ):
        super().__init__(len(task.topology.groups))
        sizes = {"hidden_size": hidden_size, "batch_size": batch_size, "replay_size": replay_size}
        for name, value in (sizes | {"updates_per_episode": updates_per_episode}).items():
            require_whole(f"agent.{name}", value, 1)
        if not 0 < warmup_ratio <= 1:
            raise UserError(f"agent.warmup_ratio={warmup_ratio} must be in (0, 1].")
        self.updates_per_episode = updates_per_episode
        self.warmup_ratio = warmup_ratio
        graph = GraphEncoder(hierarchical_graph(task.topology), **encoder)
        groups = len(task.topology.groups)
        policy = _Embedded(graph, Heads(graph.embedding_size, groups, hidden_size))
        shapes = {"kept": (groups,), "ratios": (groups,), "next_kept": (groups,), "reward": (), "terminal": ()}
        self.full = task.topology.full_widths()
        self.ddpg = DDPG(policy, Replay(replay_size, shapes), batch_size, task.episodes, **ddpg)

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Explored ratios, [B, G]."""
        if self.ddpg.warming_up and self.has_plan:
            return 1 - self.near(len(observations), generator).to(observations)
        if self.ddpg.warming_up:
            return self.warmup_ratio * torch.rand(observations.shape, generator=generator).to(observations)
        policy = self.ddpg.policy
        ratios = self.ddpg.explore(policy.heads.actor(policy.embed(observations)), generator)
        return ratios.clamp(0, 1 - 1e-6)

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """The last step of an episode earns its reward, the others nothing."""
        active, ends = episodes.active, (episodes.widths / self.full).unsqueeze(0)
        following = torch.cat([episodes.observations[1:], ends])
        following = torch.where(episodes.last.unsqueeze(-1), ends, following)
        self.ddpg.replay.add(
            kept=episodes.observations[active],
            ratios=episodes.ratios[active],
            next_kept=following[active],
            reward=(episodes.rewards.sum(0) / 100).expand(active.shape)[active],
            terminal=episodes.last[active].float(),
        )
        count = len(episodes.widths)
        return self.ddpg.learn(count, count * self.updates_per_episode, generator, descend)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam of encoder, actor and critic."""
        return self.ddpg.optimizer


class _Embedded(nn.Module):
    """The policy: the m-GNN, actor and critic."""

    def __init__(self, encoder: GraphEncoder, heads: Heads):
        super().__init__()
        self.encoder = encoder
        self.heads = heads

    def embed(self, kept: Tensor) -> Tensor:
        """The embedding of the network with these fractions kept [B, G], [B, S]."""
        network, _ = self.encoder((kept * self.encoder.graph.full_widths).round().long())
        return cast(Tensor, network)

    def transitions(self, batch: Mapping[str, Tensor]) -> Transitions:
        return Transitions(
            self.embed(batch["kept"]),
            batch["ratios"],
            batch["reward"] * batch["terminal"],  # less the baseline, which a step that earns nothing must not see
            batch["terminal"],
        )

    def next_states(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.embed(batch["next_kept"])
