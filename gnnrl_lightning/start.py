"""Where a search starts: from the whole network, or from what an earlier stage left of it."""

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from gnnrl_lightning.config import SearchConfig
from gnnrl_lightning.models.factory import ModelSpec
from gnnrl_lightning.pruning.apply import load_pruned, make_plan
from gnnrl_lightning.pruning.plan import PruningPlan
from gnnrl_lightning.pruning.verify import Removal, provable
from gnnrl_lightning.topology import Topology, trace


@dataclass(frozen=True)
class Start:
    """What a stage prunes.

    Attributes:
        unpruned: The original's groups.
        model: The network that is pruned now: the original itself, or what an earlier stage left of it.
        topology: Its groups.
        remove: How its channels are removed.
    """

    unpruned: Topology
    model: nn.Module
    topology: Topology
    remove: Removal


def starting_point(
    original: nn.Module, example: Tensor, spec: ModelSpec, cfg: SearchConfig, earlier: PruningPlan | None
) -> Start:
    """Traces the network that is pruned now, and finds out how its channels are removed.

    Args:
        original: The unpruned network.
        example: One image, [1, 3, H, W].
        spec: How the original is built.
        cfg: For what must stay whole.
        earlier: The plan of the stage before, if there was one.

    Raises:
        ValueError: If nothing can be pruned, or a network pruned once could not be pruned again.
    """
    limits = {name: getattr(cfg, name) for name in ("divisor", "min_keep", "exclude", "keep_ends")}
    # A forward with sizes of its own that the trace cannot show is found now, not after the search.
    unpruned, remove = provable(original, trace(original, example, **limits))
    model, topology = original, unpruned
    if cfg.stages > 1 and earlier is None:  # found now, not after a stage
        half = [range(max(1, group.width // 2)) for group in topology.groups]
        again = trace(remove(model, topology, half), example, exclude=cfg.exclude, keep_ends=cfg.keep_ends)
        make_plan(topology, half).then(make_plan(again, again.all_channels()))
    if earlier is not None:
        if (earlier.model or {}).get("spec") != spec.to_dict():
            raise ValueError(f"plan={cfg.plan} is not for {spec.setting}; give the network that it was made for.")
        model = load_pruned(Path(str(cfg.plan)).parent, copy.deepcopy(original))
        topology = trace(model, example, **limits)
        planned = {group.name for group in earlier.groups}
        topology = topology.without([i for i, g in enumerate(topology.groups) if g.name not in planned], "not planned")
        topology, remove = provable(model, topology)
        earlier.then(make_plan(topology, topology.all_channels()))
    return Start(unpruned, model, topology, remove)
