"""What seconds can find about a network without training: new weights, an order of channels, error curves."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from gnnrl_lightning.core.samples import Samples
from gnnrl_lightning.reconstruction.refit import refit
from gnnrl_lightning.reconstruction.selection import Selection
from gnnrl_lightning.reconstruction.sequential import sequential_refit
from gnnrl_lightning.reconstruction.statistics import Statistics, collect
from gnnrl_lightning.settings import RefitConfig
from gnnrl_lightning.topology import Topology


@dataclass
class Reconstruction:
    """The closed forms of one network; each is computed when it is first asked for.

    Attributes:
        model: The network that is pruned, in eval mode.
        topology: Its channel groups.
        images: Training images; their labels are not needed.
        settings: How much of what is used.
    """

    model: nn.Module
    topology: Topology
    images: Samples
    settings: RefitConfig
    _known: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)
    """Error curves by group and order."""

    def of(self, model: nn.Module) -> "Reconstruction":
        """The same of another network of this topology."""
        return self if model is self.model else Reconstruction(model, self.topology, self.images, self.settings)

    @cached_property
    def statistics(self) -> Statistics:
        """Of the readers, from the whole network. Ranks must ask together: each looks at a part of the images."""
        return collect(self.model, self.topology, self._placed_images(), self.settings.samples, self.settings.memory_gb)

    @cached_property
    def orders(self) -> list[Tensor]:
        """The channels of each group as they go, the first one first, [width] each."""
        selection = self._selection()
        orders = [selection.order(group) for group in range(len(self.topology.groups))]
        self._known = {_key(group, order): selection.curve(group, order) for group, order in enumerate(orders)}
        return orders

    def curves(self, orders: list[Tensor]) -> list[Tensor]:
        """What each group's readers lose at widths 0 to all if its channels go in these orders, [width + 1] each."""
        keys = [_key(group, order) for group, order in enumerate(orders)]
        if not self._known.keys() >= set(keys):
            selection = self._selection()
            self._known |= {key: selection.curve(group, orders[group]) for group, key in enumerate(keys)}
        return [self._known[key] for key in keys]

    def values(self, kept: list[list[int]]) -> dict[str, Tensor]:
        """Full-size tensors for `prune` and `rewrite`: what is refitted to these channels; none if that is off."""
        if not self.settings.enabled:
            return {}
        with self._in_full_precision():
            return refit(self.statistics, self.topology.keep_mask(kept))

    def sequential_values(self, kept: list[list[int]]) -> dict[str, Tensor]:
        """As `values`, refitted layer after layer to what the pruned network itself reads."""
        mask = self.topology.keep_mask(kept)
        with self._in_full_precision():
            return sequential_refit(
                self.model,
                self.topology,
                self.statistics,
                mask,
                self._placed_images(),
                self.settings.samples,
                self.settings.memory_gb,
            )

    def _selection(self) -> Selection:
        with self._in_full_precision():
            return Selection(self.statistics, self.topology, self.settings.enabled)

    def _placed_images(self) -> Samples:
        count = self.settings.images
        first = self.images.first(count)
        return first.to(next(self.model.parameters()).device)

    def _in_full_precision(self) -> torch.autocast:
        """Rewards may be taken under autocast."""
        return torch.autocast(next(self.model.parameters()).device.type, enabled=False)


def _key(group: int, order: Tensor) -> tuple[int, ...]:
    return (group, *order.tolist())
