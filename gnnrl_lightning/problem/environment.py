"""The pruning environment: ratios in, ever smaller widths, and a reward once the budget is reached."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.problem.task import Cost, Task
from gnnrl_lightning.settings import SearchSettings
from gnnrl_lightning.topology import Topology

Evaluate = Callable[[Tensor], float]

BELOW_ONE = 1 - 1e-6
_BISECTIONS = 24
_ROUNDS = 6
_FILLS = 20
_CLOSE = 0.005
_TOLERANCE = 0.0025


class PruningEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """An episode prunes a network step by step until its cost is within the budget (GNN-RL, section 4).

    The observation is the fraction that each group still keeps, the action the fraction of that to remove; ratios
    compound. The last action is scaled so that the episode lands on the budget: cost ≤ budget, and as close below it
    as the groups allow. After `max_steps` what is missing is removed uniformly. Only the end of an episode touches a
    network; the reward there is what `evaluate` gives, before it 0.

    `reset` and `step` are gymnasium's, for one episode; `advance` is the same step for a batch of them.

    Args:
        topology: The network's channel groups.
        cost: Cost of widths, [..., G] to [...].
        budget: Fraction of the cost that may stay, in (0, 1].
        evaluate: Reward of widths, [G] to a number; asked once for each.
        max_steps: Actions an episode may take.
        full_cost: What the budget is a fraction of, where the network is pruned already; else its own cost.

    Raises:
        UserError: If no widths are within the budget, with the lowest budget that is feasible.
    """

    def __init__(
        self,
        topology: Topology,
        cost: Cost,
        budget: float,
        evaluate: Evaluate,
        max_steps: int = SearchSettings.max_steps,
        full_cost: int | None = None,
    ):
        self.topology = topology
        self.cost = cost
        self.evaluate = evaluate
        self.rewards: dict[tuple[int, ...], float] = {}
        self.max_steps = max_steps
        self.full_widths = topology.full_widths()
        self.min_widths = topology.min_widths()
        self.divisors = torch.tensor([group.divisor for group in topology.groups])
        self.full_cost = int(cost(self.full_widths)) if full_cost is None else full_cost
        self.allowed = int(budget * self.full_cost)
        lowest = int(cost(self.min_widths))
        if lowest > self.allowed:
            raise UserError(
                f"budget={budget:g} is below what the smallest widths cost; the lowest feasible budget of this network "
                f"is {np.ceil(1e4 * lowest / self.full_cost) / 1e4:g} (for less: lower min_keep or divisor, "
                f"exclude=[], keep_ends=false)."
            )
        size = (len(topology.groups),)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, size, np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, BELOW_ONE, size, np.float32)
        self._kept = torch.ones(1, *size, dtype=torch.float64)
        self._step = 0

    def reward(self, widths: Tensor) -> float:
        """Reward of widths [G]; the same widths are evaluated once."""
        key = tuple(widths.tolist())
        if key not in self.rewards:
            self.rewards[key] = self.evaluate(widths)
        return self.rewards[key]

    def widths(self, kept: Tensor) -> Tensor:
        """Channels of fractions kept [..., G]: the nearest allowed number, [..., G]."""
        exact = kept * self.full_widths
        steps = (exact / self.divisors).round().long() * self.divisors
        return torch.where(kept >= 1, self.full_widths, steps.clamp(self.min_widths, self.full_widths))

    def task(self, scores: Callable[[], list[Tensor]], episodes: int | None = None, **more: Any) -> Task:
        """What agents and importances may know of it and of its search; the arguments are those of `Task`."""
        start = torch.ones_like(self._kept)
        uniform = self.advance(start, torch.full_like(start, BELOW_ONE), 0)[1][0]
        return Task(self.topology, self.cost, self.allowed, uniform, scores, episodes, **more)

    def advance(self, kept: Tensor, ratios: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """One step of a batch of episodes.

        Args:
            kept: Fraction that each group keeps, float64 [B, G].
            ratios: Fraction of it to remove, [B, G] in [0, 1).
            step: Number of this step, from 0.

        Returns:
            The new fractions [B, G], the widths [B, G], and which episodes have reached the budget [B].
        """
        ratios = ratios.to(kept).clamp(0, BELOW_ONE)
        # What a group must keep is a floor for its fraction too: else ratios would go on compounding below it.
        after = torch.maximum(kept * (1 - ratios), self.min_widths / self.full_widths.to(kept))
        widths = self.widths(after)
        done = self.cost(widths) <= self.allowed
        if step + 1 >= self.max_steps:
            ratios = torch.where(done.unsqueeze(-1), ratios, torch.ones_like(ratios))
            kept = torch.where(done.unsqueeze(-1), kept, after)
            done = torch.ones_like(done)
        if done.any():
            widths[done] = self._land(kept[done], ratios[done])
            after[done] = widths[done] / self.full_widths.to(after)
        return after, widths, done

    def _land(self, kept: Tensor, ratios: Tensor) -> Tensor:
        """The widths where an action that overshoots meets the budget, [B, G].

        Widths that are within it and close to it stay as they were asked for. Where an action asks one coarse group
        alone to shrink, the last step may leave much of the budget unused: then it is taken back, and all groups give a
        little instead.
        """
        asked = self.widths(kept * (1 - ratios))
        unused = self._unused(asked)
        exact = (unused >= 0) & (unused <= _CLOSE * self.full_cost)
        if exact.all():
            return asked
        widths, above = self._scale(kept, ratios)
        rows = self._unused(widths) > _TOLERANCE * self.full_cost
        if rows.any():
            instead, _ = self._scale(above[rows] / self.full_widths.to(kept), torch.ones_like(ratios[rows]))
            closer = self._unused(instead) < self._unused(widths[rows])
            widths[rows] = torch.where(closer.unsqueeze(-1), instead, widths[rows])
        return torch.where(exact.unsqueeze(-1), asked, widths)

    def _scale(self, kept: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
        """The largest widths(kept · (1 − s·ratios)) within the budget, and those for the next smaller s, [B, G] each.

        At the s found by bisection one coarse group usually decides. It is then held where it is and the rest tries
        again with a smaller s, so that the fine groups use up what the coarse one left.
        """
        fixed = torch.zeros_like(kept, dtype=torch.bool)
        landed = next_larger = self.min_widths.repeat(len(kept), 1)
        high = torch.ones(len(kept), dtype=kept.dtype)

        def scaled(s: Tensor) -> Tensor:
            return torch.where(fixed, landed, self.widths(kept * (1 - s.unsqueeze(-1) * ratios)))

        for round_ in range(_ROUNDS):
            low = torch.zeros_like(high)
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                within = self.cost(scaled(middle)) <= self.allowed
                high = torch.where(within, middle, high)
                low = torch.where(within, low, middle)
            below, above = scaled(high), scaled(low)
            if round_ == 0:
                next_larger = above
            # Rows that are close enough stay as they are, so that no episode depends on those beside it.
            short = (self._unused(below) > _TOLERANCE * self.full_cost).unsqueeze(-1)
            landed, fixed = below, fixed | (below != above) | ~short
            if fixed.all():
                break
        return self._fill(landed), next_larger

    def _unused(self, widths: Tensor) -> Tensor:
        return self.allowed - self.cost(widths)

    def _fill(self, widths: Tensor) -> Tensor:
        """Gives single groups one step back, the costliest that fits first, while too much of the budget is unused.

        Rarely needed: only where an action crosses the budget with the step of one coarse group alone.
        """
        for _ in range(_FILLS):
            rows = (self._unused(widths) > _TOLERANCE * self.full_cost).nonzero().flatten()
            room = torch.minimum(widths[rows] // self.divisors * self.divisors + self.divisors, self.full_widths)
            wider = widths[rows].unsqueeze(1) + torch.diag_embed(room - widths[rows])  # [rows, G, G]
            cost = self.cost(wider)
            fits = (cost <= self.allowed) & (room > widths[rows])
            found = fits.any(1)
            if not found.any():
                break
            best = torch.where(fits, cost, -1).argmax(1)
            widths[rows[found]] = wider[found, best[found]]
        return widths

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts an episode from the whole network."""
        super().reset(seed=seed)
        self._kept = torch.ones_like(self._kept)
        self._step = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Removes `action[g]` of what group g still keeps; the reward comes with the last step."""
        ratios = torch.as_tensor(np.asarray(action)).unsqueeze(0)
        self._kept, widths, done = self.advance(self._kept, ratios, self._step)
        self._step += 1
        over = bool(done[0])
        reward = self.reward(widths[0]) if over else 0.0
        info = {"widths": widths[0].tolist(), "cost": int(self.cost(widths[0]))}
        return self._observation(), reward, over, False, info

    def _observation(self) -> np.ndarray:
        return self._kept[0].float().numpy()
