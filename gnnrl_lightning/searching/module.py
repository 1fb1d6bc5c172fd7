"""The search as a LightningModule: one training step is one iteration of roll-outs, rewards and learning."""

import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gnnrl_lightning.problem.environment import PruningEnv
from gnnrl_lightning.searching.agents.protocol import Agent, Episodes
from gnnrl_lightning.searching.precision import single_precision
from gnnrl_lightning.training.checkpoints import require_same

HISTORY = (
    "episode",
    "iteration",
    "steps",
    "reward",
    "best_reward",
    "cost",
    "cost_ratio",
    "cached",
    "seconds",
    "widths",
)


class SearchModule(L.LightningModule):
    """Lets an agent search for widths.

    Lightning gives checkpoints, resume, loggers, devices and DDP; each rank rolls out its own episodes, gradients are
    averaged, and every rank knows the history of all.

    Args:
        agent: Proposes ratios and learns.
        env: The pruning environment.
        episodes: Episodes of the whole search, all ranks together.
        seed: Of the agent's draws; rank r draws from seed + r.
        settings: What the search was started with; a checkpoint of other settings is refused.
        plans: Widths [G] by name to open with; the agent then begins at the best of them. None: it begins as its paper
            says.
        grad_clip: Largest norm of the gradient of one step.
    """

    def __init__(
        self,
        agent: Agent,
        env: PruningEnv,
        episodes: int,
        seed: int,
        settings: dict[str, Any],
        plans: Callable[[], dict[str, Tensor]] | None = None,
        grad_clip: float = 0.5,
    ):
        super().__init__()
        self.automatic_optimization = False
        assert isinstance(agent, nn.Module)
        self.agent = agent
        if not any(parameter.requires_grad for parameter in agent.parameters()):
            self.nothing_to_learn = nn.Parameter(torch.zeros(()))  # ddp refuses a module without parameters
        self.env = env
        self.episodes = episodes
        self.seed = seed
        self.settings = settings
        self.plans = plans if hasattr(agent, "begin") else None
        self.grad_clip = grad_clip
        self.history: list[dict[str, Any]] = []
        self.on_reward: Callable[[], None] | None = None
        self.seconds_before = 0.0  # what the search took before it was stopped
        self._started = 0.0
        self._generator: torch.Generator | None = None
        self._generator_state: Tensor | None = None

    @property
    def per_iteration(self) -> int:
        """Episodes of one iteration, all ranks together."""
        return int(self.agent.episodes_per_iteration) * (self.trainer.world_size if self._trainer else 1)

    @property
    def iterations(self) -> int:
        """Iterations of the whole search; the last one may be shorter."""
        return -(-self.episodes // self.per_iteration)

    def train_dataloader(self) -> DataLoader:
        """One batch an epoch and one iteration a batch: a checkpoint at an epoch's end is a complete state."""
        return DataLoader([0])  # type: ignore[arg-type]

    def on_fit_start(self) -> None:
        """Makes the rank's own generator; and how many iterations there are is known now that the ranks are."""
        self._started = time.perf_counter()
        loop = self.trainer.fit_loop
        loop.max_epochs = min(loop.max_epochs or self.iterations, self.iterations)
        self._generator = torch.Generator().manual_seed(self.seed + self.global_rank)
        if self._generator_state is not None:
            # A copy: set_state reads past a view that does not begin where its memory does.
            self._generator.set_state(self._generator_state[self.global_rank].clone())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One iteration: roll out, evaluate, learn, log; before the first one, what the search opens with."""
        world = self.trainer.world_size
        if self.plans is not None and not self.history:
            self._open(self.plans())
        count = min(int(self.agent.episodes_per_iteration), -(-(self.episodes - len(self.history)) // world))
        assert self._generator is not None
        metrics: dict[str, float] = {}
        if count > 0:
            episodes, rows = self._roll_out(count)
            self._remember(rows)
            started = time.perf_counter()
            progress = len(self.history) / self.episodes
            with single_precision():
                learned = self.agent.learn(episodes, progress, self._generator, self._descend)
            metrics = {f"losses/{name}": value for name, value in learned.items()}
            metrics["seconds/learn"] = time.perf_counter() - started
            metrics["search/reward_mean"] = sum(row["reward"] for row in rows) / len(rows)
        best = self.best
        self.log_dict(
            {
                **metrics,
                "search/episode": float(len(self.history)),
                "search/best_reward": best["reward"],
                "search/best_cost_ratio": best["cost_ratio"],
            }
        )

    @property
    def best(self) -> dict[str, Any]:
        """The first row of the history with the highest reward."""
        return max(self.history, key=lambda row: row["reward"])

    def finalists(self, count: int) -> list[Tensor]:
        """Widths of the `count` best distinct networks, best first; each [G]."""
        ranked = sorted(self.history, key=lambda row: -row["reward"])
        distinct = dict.fromkeys(row["widths"] for row in ranked)
        return [torch.tensor([int(width) for width in widths.split()]) for widths in list(distinct)[:count]]

    def configure_optimizers(self) -> Any:
        """The agent's optimiser; none if it does not learn."""
        return self.agent.optimizer() or []

    def _roll_out(self, count: int) -> tuple[Episodes, list[dict[str, Any]]]:
        """Runs `count` episodes side by side and takes their rewards one after the other."""
        assert self._generator is not None
        env = self.env
        kept = torch.ones(count, len(env.full_widths), dtype=torch.float64)
        active = torch.ones(count, dtype=torch.bool)
        widths = env.full_widths.repeat(count, 1)
        observations, ratios, taken = [], [], []
        for step in range(env.max_steps):
            observation = kept.float()
            with torch.no_grad(), single_precision():
                action = self.agent.propose(observation.to(self.device), self._generator).cpu()
            after, proposed, done = env.advance(kept, action, step)
            observations.append(observation)
            ratios.append(action)
            taken.append(active)
            widths = torch.where(active.unsqueeze(1), proposed, widths)
            kept = torch.where(active.unsqueeze(1), after, kept)
            active = active & ~done
            if not active.any():
                break
        active_steps = torch.stack(taken)
        rewards = torch.zeros(active_steps.shape, dtype=torch.float32)
        rows = []
        for index in range(count):
            last = int(active_steps[:, index].sum()) - 1
            rows.append(self._evaluated(widths[index], last + 1))
            rewards[last, index] = rows[-1]["reward"]
        episodes = Episodes(torch.stack(observations), torch.stack(ratios), active_steps, rewards, widths)
        return episodes, rows

    def _open(self, plans: dict[str, Tensor]) -> None:
        """Evaluates the plans, shared out among the ranks, and lets the agent begin at the best."""
        first = list(plans.values())[: self.episodes]
        mine = first[self.global_rank :: self.trainer.world_size]
        self._remember([self._evaluated(widths, 1) for widths in mine])
        begin: Any = self.agent.begin
        begin(torch.tensor([int(w) for w in self.best["widths"].split()]) / self.env.full_widths.double())

    def _evaluated(self, widths: Tensor, steps: int) -> dict[str, Any]:
        """Takes a reward: a row of the history, but for its place there."""
        started = time.perf_counter()
        known = tuple(widths.tolist()) in self.env.rewards
        row = {
            "steps": steps,
            "reward": self.env.reward(widths),
            "cost": int(self.env.cost(widths)),
            "cached": int(known),
            "seconds": round(time.perf_counter() - started, 3),
            "widths": " ".join(map(str, widths.tolist())),
        }
        if self.on_reward is not None:
            self.on_reward()
        return row

    def _remember(self, rows: list[dict[str, Any]]) -> None:
        """Appends the episodes of all ranks to the history, in the order of ranks.

        Ranks play equally many, so that the last iteration may have one too many for the search: it does not count.
        """
        if self.trainer.world_size > 1:
            gathered: list[list[dict[str, Any]]] = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(gathered, rows)
            rows[:] = [row for part in gathered for row in part][: self.episodes - len(self.history)]
        for row in rows:
            best = max(self.history[-1]["best_reward"], row["reward"]) if self.history else row["reward"]
            place = {"episode": len(self.history), "iteration": self.current_epoch}
            more = {"best_reward": best, "cost_ratio": round(row["cost"] / self.env.full_cost, 6)}
            row.update(place, **more)
            self._cache(row)
            self.history.append({name: row[name] for name in HISTORY})

    def _descend(self, loss: Tensor) -> None:
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        assert torch.isfinite(loss), "the agent's loss is not finite"
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer.optimizer, gradient_clip_val=self.grad_clip, gradient_clip_algorithm="norm")
        optimizer.step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resumed search needs to end as the uninterrupted one."""
        assert self._generator is not None
        states = self.all_gather(self._generator.get_state())
        assert isinstance(states, Tensor)
        checkpoint["search"] = {
            "history": self.history,
            "generators": states.view(self.trainer.world_size, -1).cpu(),
            "settings": self.settings,
            "seconds": self.seconds_before + time.perf_counter() - self._started,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up a search where it was left.

        Raises:
            UserError: If it was started with other settings.
        """
        saved = checkpoint["search"]
        require_same(
            saved["settings"] | {"ranks": len(saved["generators"])}, self.settings | {"ranks": self.trainer.world_size}
        )
        self.history = list(saved["history"])
        self._generator_state = saved["generators"]
        self.seconds_before = saved["seconds"]
        for row in self.history:
            self._cache(row)

    def _cache(self, row: dict[str, Any]) -> None:
        self.env.rewards[tuple(int(width) for width in row["widths"].split())] = row["reward"]
