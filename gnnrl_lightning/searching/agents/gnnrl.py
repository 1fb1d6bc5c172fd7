"""GNN-RL: PPO on the multi-stage graph embedding (ICML 2022)."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnrl_lightning.core.checks import UserError, require_number, require_whole, require_within
from gnnrl_lightning.nn.actor_critic import ActorCritic
from gnnrl_lightning.nn.encoder import GraphEncoder
from gnnrl_lightning.problem.task import Task
from gnnrl_lightning.searching.agents.protocol import Descend, Episodes
from gnnrl_lightning.searching.agents.start import SPREAD, as_logits
from gnnrl_lightning.searching.ppo import clipped_objective, generalized_advantage, standardize
from gnnrl_lightning.topology.hierarchy import hierarchical_graph
from gnnrl_lightning.training.checkpoints import read_checkpoint


class GNNRLAgent(nn.Module):
    """Actor and critic see the network's hierarchical graph; PPO with the clipped objective learns them.

    Args:
        task: The network; what it costs, its reward says.
        encoder: Sizes and features of the m-GNN, see `GraphEncoder`.
        hidden_size: Hidden layer of the heads (paper: 200).
        initial_ratio: Ratio that the untrained policy proposes for a group of two layers.
        coupling: How strongly groups that couple more layers are spared at first, see `ActorCritic`.
        correlation: Correlation of the actions of groups that are alike, see `ActorCritic`; at most 0.99.
        action_std: Standard deviation of the action before the logistic function (authors' code: 0.5).
        final_action_std: What it shrinks to, geometrically, over the search.
        episodes_per_iteration: Episodes between two updates, on each rank.
        ppo_epochs: Passes over the episodes of an update (paper: 20).
        clip_epsilon: How far the probability ratio may leave 1 (authors' code: 0.2).
        gamma: Discount. 1: an episode's return should not depend on how many steps it took.
        gae_lambda: 1 is Monte-Carlo, as in the paper.
        critic_coeff: Weight of the critic's loss.
        lr: Adam's learning rate of encoder and heads at the start (authors' code: 3e-4). It shrinks with the standard
            deviation, so that a step of the mean stays the same part of what is explored.
        offset_lr: The same of the groups' offsets.
        encoder_from: Folder of a search with this agent, on any network, whose encoder is taken over (paper, Fig. 8).
        freeze_encoder: Whether the encoder stays as it is, so that only the heads learn.

    Raises:
        UserError: If a value is out of range, or the encoder is none or another.
    """

    std: Tensor
    narrower: Tensor

    def __init__(
        self,
        task: Task,
        encoder: dict,
        hidden_size: int,
        initial_ratio: float,
        coupling: float,
        correlation: float,
        action_std: float,
        final_action_std: float,
        episodes_per_iteration: int,
        ppo_epochs: int,
        clip_epsilon: float,
        gamma: float,
        gae_lambda: float,
        critic_coeff: float,
        lr: float,
        offset_lr: float,
        encoder_from: str | None = None,
        freeze_encoder: bool = False,
    ):
        super().__init__()
        require_whole("agent.episodes_per_iteration", episodes_per_iteration, 2)  # advantages are standardised over it
        require_whole("agent.hidden_size", hidden_size, 1)
        require_whole("agent.ppo_epochs", ppo_epochs, 1)
        require_number("agent.initial_ratio", initial_ratio, above=0, below=1)
        positive = {"action_std": action_std, "final_action_std": final_action_std, "clip_epsilon": clip_epsilon}
        for name, value in (positive | {"lr": lr, "offset_lr": offset_lr}).items():
            require_number(f"agent.{name}", value, above=0)
        for name, value in {"coupling": coupling, "critic_coeff": critic_coeff}.items():
            require_within(f"agent.{name}", value, 0, math.inf)
        for name, value in {"gamma": gamma, "gae_lambda": gae_lambda}.items():
            require_within(f"agent.{name}", value, 0, 1)
        require_within("agent.correlation", correlation, 0, 0.99)
        graph = hierarchical_graph(task.topology)
        self.policy = ActorCritic(GraphEncoder(graph, **encoder), hidden_size, initial_ratio, coupling, correlation)
        if freeze_encoder and encoder_from is None:
            raise UserError("agent.freeze_encoder=true needs agent.encoder_from=…: there is nothing learned to keep.")
        if encoder_from is not None:
            _take_encoder(self.policy.encoder, Path(encoder_from))
        if freeze_encoder:
            self.policy.encoder.requires_grad_(False)
        self.freeze_encoder = freeze_encoder
        self.stds = (action_std, final_action_std)
        self.episodes_per_iteration = episodes_per_iteration
        self.ppo_epochs = ppo_epochs
        self.clip_epsilon = clip_epsilon
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.critic_coeff = critic_coeff
        self.lr = lr
        self.offset_lr = offset_lr
        self.register_buffer("std", torch.tensor(float(action_std)))
        self.register_buffer("narrower", torch.ones(()))
        slow = [p for p in self.parameters() if p.requires_grad and p is not self.policy.offset]
        groups = [{"params": slow, "lr": lr}, {"params": [self.policy.offset], "lr": offset_lr}]
        self._optimizer = torch.optim.Adam(groups, eps=1e-5)

    def begin(self, kept: Tensor) -> None:
        """The first policy's mean is a plan, and it explores near it."""
        self.policy.initial_mean.copy_(as_logits(1 - kept))
        self.narrower.fill_(min(1.0, SPREAD / self.stds[0]))
        self.std.fill_(self.stds[0] * self.narrower)

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Samples ratios in (0, 1), [B, G]."""
        mean, _ = self.policy(observations)
        return self.policy.distribution(mean, float(self.std)).sample(generator)

    def learn(
        self, episodes: Episodes, progress: float, generator: torch.Generator, descend: Descend
    ) -> dict[str, float]:
        """PPO on the whole batch, `ppo_epochs` times."""
        for group, lr in zip(self._optimizer.param_groups, (self.lr, self.offset_lr), strict=True):
            group["lr"] = lr * float(self.std) / self.stds[0]
        device = self.std.device
        active = episodes.active
        observations = episodes.observations[active].to(device)  # [N, G]
        ratios = episodes.ratios[active].to(device)
        with torch.no_grad():
            embedded = self.policy.embed(observations)
            mean, values = self.policy.heads(*embedded)
            old_log_prob = self.policy.distribution(mean, float(self.std)).log_prob(ratios)
        rewards = standardize(episodes.rewards.sum(0)) * episodes.last
        old_values = torch.zeros_like(rewards)
        old_values[active] = values.cpu()
        advantage, returns = generalized_advantage(rewards, old_values, active, self.gamma, self.gae_lambda)
        advantage, returns = standardize(advantage[active]).to(device), returns[active].to(device)
        metrics: dict[str, Tensor] = {}
        for _ in range(self.ppo_epochs):
            if not self.freeze_encoder:
                embedded = self.policy.embed(observations)
            mean, values = self.policy.heads(*embedded)
            log_prob = self.policy.distribution(mean, float(self.std)).log_prob(ratios)
            metrics = clipped_objective(log_prob, old_log_prob, advantage, self.clip_epsilon)
            critic_loss = F.mse_loss(values, returns)
            descend(metrics["loss"] + self.critic_coeff * critic_loss)
        first, last = self.stds
        self.std.fill_(self.narrower * first * (last / first) ** progress)
        return {
            "policy_loss": float(metrics["loss"].detach()),
            "value_loss": float(critic_loss.detach()),
            "approx_kl": float(metrics["approx_kl"]),
            "clipfrac": float(metrics["clip_fraction"]),
            "action_std": float(self.std),
        }

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over all parameters that are not frozen."""
        return self._optimizer


def _take_encoder(encoder: GraphEncoder, run: Path) -> None:
    path, prefix = run / "checkpoints" / "last.ckpt", "agent.policy.encoder."
    if not path.is_file():
        raise UserError(f"agent.encoder_from={run} is not the folder of a search: {path} does not exist.")
    state = read_checkpoint(path).get("state_dict", {})
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not found:
        raise UserError(f"agent.encoder_from={run} has no encoder; it must be the folder of a search with agent=gnnrl.")
    try:
        with torch.no_grad():
            encoder.take(found)
    except ValueError as error:
        raise UserError(
            f"agent.encoder_from={run} has another encoder ({error}); give the agent.encoder.… of that search."
        ) from error
