"""How many channels each group keeps: the budget is spent where the error curves fall least."""

from collections.abc import Callable

import torch
from torch import Tensor

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.topology import Topology

Cost = Callable[[Tensor], Tensor]

_STEPS = 48
"""Steps from all channels to none; what they leave of the budget is given back channel by channel."""


def allocate(topology: Topology, curves: list[Tensor], cost: Cost, allowed: int) -> Tensor:
    """The widths with nearly the least summed error within the budget, [G].

    Greedy from the whole network: of all steps of all groups, of several lengths, the one with the least increase of
    the error for the cost that it saves. Then what the budget leaves is given back where the error falls most, and
    pairs of groups exchange channels as long as that helps.

    Args:
        topology: The channel groups, with their allowed widths.
        curves: Error of each group at widths 0 to all, [width + 1]; they need not be convex.
        cost: Cost of widths [..., G], [...]; in whatever unit, of whatever form.
        allowed: The most that the network may cost.

    Raises:
        UserError: If no widths are within the budget.
    """
    search = _Search(topology, curves, cost, allowed)
    widths = search.shrink(topology.full_widths())
    return search.exchange(search.grow(widths))


class _Search:
    def __init__(self, topology: Topology, curves: list[Tensor], cost: Cost, allowed: int):
        self.choices = [torch.tensor(group.widths()) for group in topology.groups]
        most = max(map(len, self.choices))
        # Padded with the last choice, which is all channels.
        self.widths = torch.stack([torch.cat([c, c[-1:].expand(most - len(c))]) for c in self.choices])
        errors = [curve.double()[choice] for curve, choice in zip(curves, self.choices, strict=True)]
        self.errors = torch.stack([torch.cat([e, e[-1:].expand(most - len(e))]) for e in errors])
        self.count = torch.tensor([len(choice) for choice in self.choices])
        self.strides = (self.count // _STEPS).clamp(min=1)
        self.groups = torch.arange(len(self.choices))
        self.cost, self.allowed = cost, allowed
        self.lengths = torch.tensor([1, 2, 4, 8, 16])

    def _place(self, widths: Tensor) -> Tensor:
        """The place of each width among the choices of its group, of widths [..., G]."""
        each = zip(self.choices, widths.unbind(-1), strict=True)
        return torch.stack([torch.searchsorted(c, w.contiguous()) for c, w in each], -1)

    def _moved(self, place: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every group alone by every number of steps: widths, change of the error and new place.

        Args:
            place: Of several plans, [B, G].
            steps: [G, L].

        Returns:
            [B, G, L, G], and twice [B, G, L].
        """
        new = (place.unsqueeze(2) + steps).clamp(min=0)
        new = torch.minimum(new, (self.count - 1).unsqueeze(1))
        groups = self.groups.unsqueeze(1)
        widths = self.widths[self.groups, place][:, None, None].repeat(1, *new.shape[1:], 1)
        widths[:, self.groups, :, self.groups] = self.widths[groups, new].transpose(0, 1)
        change = self.errors[groups, new] - self.errors[self.groups, place].unsqueeze(2)
        return widths, change, new

    def shrink(self, widths: Tensor) -> Tensor:
        """From these widths down to the budget."""
        place = self._place(widths)
        while (now := self.cost(self.widths[self.groups, place])) > self.allowed:
            steps = -self.strides.unsqueeze(1) * self.lengths
            wider, change, new = (each[0] for each in self._moved(place.unsqueeze(0), steps))
            saved = (now - self.cost(wider)).double()
            moves = (new != place.unsqueeze(1)) & (saved > 0)
            if not moves.any():
                # A cost may have plateaus that no single group leaves.
                if not (place > 0).any():
                    raise UserError("no widths are within the budget.")
                place = (place - self.strides).clamp(min=0)
                continue
            # More than is needed is not worth more.
            saved = saved.clamp(max=float(now - self.allowed))
            price = torch.where(moves, change / saved, torch.inf)
            best = int(price.flatten().argmin())
            place[best // len(self.lengths)] = new.flatten()[best]
        return self.widths[self.groups, place]

    def grow(self, widths: Tensor) -> Tensor:
        """Gives channels back to each of several plans [..., G] while the budget has room."""
        place = self._place(widths.reshape(-1, len(self.groups)))
        steps = torch.tensor([1, 2, 4]).expand(len(self.groups), 3)
        growing = torch.arange(len(place))
        while len(growing):
            here = place[growing]
            now = self.cost(self.widths[self.groups, here])[:, None, None]
            wider, change, new = self._moved(here, steps)
            costs = self.cost(wider)
            fits = (new != here.unsqueeze(2)) & (costs <= self.allowed)
            gain = torch.where(fits, -change / (costs - now).double().clamp(min=1), -torch.inf)
            best = gain.flatten(1).argmax(1)
            more = fits.flatten(1).any(1)
            growing, best, new = growing[more], best[more], new[more]
            place[growing, best // 3] = new.flatten(1).gather(1, best.unsqueeze(1)).squeeze(1)
        return self.widths[self.groups, place].view(widths.shape)

    def exchange(self, widths: Tensor, most: int = 200) -> Tensor:
        """One group gives channels, another takes them, while the summed error falls."""
        best, error = widths, self._errors(widths[None])[0]
        for _ in range(most):
            place = self._place(best)
            smaller, _, new = self._moved(place.unsqueeze(0), torch.tensor([-1, -2, -4]).expand(len(place), 3))
            givers = smaller[0][new[0] != place.unsqueeze(1)]
            if not len(givers):
                break
            tried = self.grow(givers)
            errors = self._errors(tried)
            first = int(errors.argmin())
            if not errors[first] < error * (1 - 1e-9):
                break
            best, error = tried[first], errors[first]
        return best

    def _errors(self, widths: Tensor) -> Tensor:
        """The summed error of several plans [B, G], [B]."""
        return self.errors[self.groups, self._place(widths)].sum(1)


def closed_form_plans(
    topology: Topology, curves: list[Tensor], cost: Cost, allowed: int, uniform: Tensor
) -> dict[str, Tensor]:
    """The few widths among which rewards may choose, by name, [G] each; all within the budget.

    The summed error is a first-order account: it holds groups to be independent and errors small. Which power of the
    curves makes up for that best differs from network to network, and so does whether uniform widths are safer.

    Args:
        topology: The channel groups.
        curves: Error of each group at widths 0 to all, [width + 1].
        cost: Cost of widths.
        allowed: The most that the network may cost.
        uniform: The widths within the budget that remove the same fraction of every group, [G].
    """
    plans = {
        name: allocate(topology, [curve**power for curve in curves], cost, allowed)
        for name, power in {"error": 1.0, "error^1.5": 1.5, "error^2": 2.0, "error^3": 3.0}.items()
    }
    for name in ("error", "error^2"):
        plans[f"{name}, half uniform"] = _between(topology, plans[name], uniform, curves, cost, allowed)
    plans["uniform"] = uniform
    return plans


def _between(topology: Topology, one: Tensor, other: Tensor, curves: list[Tensor], cost: Cost, allowed: int) -> Tensor:
    """Half way between two plans, and from there down to the budget or up to it."""
    search = _Search(topology, curves, cost, allowed)
    middle = torch.stack(
        [c[(c - w).abs().argmin()] for c, w in zip(search.choices, (one + other).double() / 2, strict=True)]
    )
    return search.grow(search.shrink(middle))
