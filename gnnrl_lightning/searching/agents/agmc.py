"""AGMC: DDPG on what an LSTM decodes from a graph embedding (Yu, Mazaheri, Jannesari, ICCV 2021)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError, require_whole
from gnnrl_lightning.nn.message_passing import EdgeGCNConv
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.protocol import Descend, Episodes
from gnnrl_lightning.searching.agents.start import DrawsNear
from gnnrl_lightning.searching.ddpg import DDPG, Heads, Transitions
from gnnrl_lightning.searching.replay import Replay
from gnnrl_lightning.topology.hierarchy import EDGE_KINDS, HierarchicalGraph, hierarchical_graph


class AGMCAgent(DrawsNear):
    """Embeds the network's flat graph and decodes it group by group into states, each of which gets an action.

    Our reading: encoder and decoder learn with the actor and the critic, so that the replay memory holds what was done
    rather than states, and a batch is made of whole episodes. The released code cuts ratios down to the budget by one
    heuristic pass; here the environment's landing does, and what is learned from is the network that was evaluated.

    Args:
        task: Groups of the network; what it costs, its reward says.
        feature_size: Of the normal node features, drawn once (authors' code: 50).
        embedding_size: Of graph and decoder states (authors' code: 30).
        hidden_size: Of actor and critic (authors' code: 300).
        batch_size: Transitions of an update, rounded up to whole episodes (authors' code: 64).
        replay_episodes: Episodes that the replay memory holds (authors' code: 100).
        warmup_ratio: Ratios of the warm-up are drawn from U(0, this) (authors' code: 0.3).
        ddpg: The rest of `DDPG`.
    """

    episodes_per_iteration = 1
    """It learns after every episode."""

    def __init__(
        self,
        task: Task,
        feature_size: int,
        embedding_size: int,
        hidden_size: int,
        batch_size: int,
        replay_episodes: int,
        warmup_ratio: float,
        ddpg: dict,
    ):
        super().__init__(len(task.topology.groups))
        sizes = {"feature_size": feature_size, "embedding_size": embedding_size, "hidden_size": hidden_size}
        for name, value in (sizes | {"batch_size": batch_size, "replay_episodes": replay_episodes}).items():
            require_whole(f"agent.{name}", value, 1)
        if not 0 < warmup_ratio <= 1:
            raise UserError(f"agent.warmup_ratio={warmup_ratio} must be in (0, 1].")
        self.full = task.topology.full_widths()
        self.warmup_ratio = warmup_ratio
        groups = len(self.full)
        graph = FlatGraphEncoder(hierarchical_graph(task.topology), feature_size, embedding_size)
        policy = _Decoded(graph, Heads(embedding_size, 1, hidden_size))
        replay = Replay(replay_episodes, {"actions": (groups,), "reward": ()})
        self.ddpg = DDPG(policy, replay, -(-batch_size // groups), task.episodes, **ddpg)

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Explored ratios for the whole network, [B, G]; where they were not enough, equal ones."""
        if (observations < 1).any(1).all():
            return torch.full_like(observations, 1 - 1e-6)
        count, groups = observations.shape
        if self.ddpg.warming_up and self.has_plan:
            ratios = 1 - self.near(count, generator).to(observations)
        elif self.ddpg.warming_up:
            ratios = self.warmup_ratio * torch.rand(count, groups, generator=generator).to(observations)
        else:
            walk, actions = self.ddpg.policy.start(count), []
            for _ in range(groups):
                action = self.ddpg.explore(self.ddpg.policy.heads.actor(walk.state), generator)
                walk.step(action)
                actions.append(action)
            ratios = 1 - torch.cat(actions, 1)
        return torch.where((observations < 1).any(1, keepdim=True), 1 - 1e-6, ratios.clamp(0, 1 - 1e-6))

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """Every decision of an episode earns its final reward; one update for each group."""
        self.ddpg.replay.add(actions=episodes.widths / self.full, reward=episodes.rewards.sum(0) / 100)
        count = len(episodes.widths)
        return self.ddpg.learn(count, count * len(self.full), generator, descend)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam of encoder, decoder, actor and critic."""
        return self.ddpg.optimizer


class FlatGraphEncoder(nn.Module):
    """One graph convolution over the network's hidden states, the mean over its nodes, and a layer.

    Args:
        graph: Of which level 2 is looked at.
        feature_size: Of the normal node features.
        embedding_size: Of the result.
    """

    features: Tensor
    edges: Tensor
    copies: Tensor
    share: Tensor

    def __init__(self, graph: HierarchicalGraph, feature_size: int, embedding_size: int):
        super().__init__()
        self.conv = EdgeGCNConv(feature_size, embedding_size)
        self.linear = nn.Linear(embedding_size, embedding_size)
        generator = torch.Generator().manual_seed(0)
        size = graph.multiplicities()
        collects = graph.edge_kind == EDGE_KINDS.index("concat")
        self.register_buffer("features", torch.randn(len(size), feature_size, generator=generator), persistent=False)
        self.register_buffer("edges", graph.edges, persistent=False)
        self.register_buffer("copies", torch.where(collects, size[graph.edges[0]], 1).float(), persistent=False)
        self.register_buffer("share", (size / size.sum()).unsqueeze(1), persistent=False)

    def forward(self) -> Tensor:
        """The embedding of the whole network, [embedding_size]."""
        ones = self.features.new_ones(self.edges.shape[1], self.features.shape[1])
        states = torch.relu(self.conv(self.features, self.edges, ones, self.copies))
        return torch.tanh(self.linear((self.share * states).sum(0)))


class _Walk:
    """The decoder on its way through the groups of B networks."""

    def __init__(self, policy: "_Decoded", count: int):
        self.policy = policy
        self.state = policy.encoder().expand(count, -1)
        self.memory = self.state.new_zeros(2, count, self.state.shape[1])

    def step(self, action: Tensor) -> None:
        """Goes on to the next group's state once this one's action [B, 1] is known."""
        hidden, cell = self.policy.lstm(self.state, (self.memory[0], self.memory[1]))
        self.memory = torch.stack([hidden, cell])
        self.state = torch.relu(self.policy.mix(torch.cat([hidden, action], 1)))


class _Decoded(nn.Module):
    """The policy: encoder, LSTM decoder s' = ReLU(W [LSTM(s); a]), actor and critic."""

    def __init__(self, encoder: FlatGraphEncoder, heads: Heads):
        super().__init__()
        size = encoder.linear.out_features
        self.encoder = encoder
        self.lstm = nn.LSTMCell(size, size)
        self.mix = nn.Linear(size + 1, size)
        self.heads = heads

    def start(self, count: int) -> _Walk:
        """At the first group of `count` networks."""
        return _Walk(self, count)

    def transitions(self, batch: Mapping[str, Tensor]) -> Transitions:
        """Whole episodes, all groups of R of them: [R · G] steps."""
        actions = batch["actions"]
        terminal = torch.zeros_like(actions)
        terminal[:, -1] = 1
        rewards = batch["reward"].unsqueeze(1).expand_as(actions)
        states = self._states(actions).flatten(0, 1)
        return Transitions(states, actions.reshape(-1, 1), rewards.reshape(-1), terminal.flatten())

    def next_states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The states of the groups that follow."""
        return self._states(batch["actions"]).roll(-1, 1).flatten(0, 1)

    def _states(self, actions: Tensor) -> Tensor:
        """Walks through episodes again: states [R, G, S] for actions [R, G]."""
        walk, states = self.start(len(actions)), []
        for group in range(actions.shape[1]):
            states.append(walk.state)
            if group + 1 < actions.shape[1]:
                walk.step(actions[:, group : group + 1])
        return torch.stack(states, 1)
