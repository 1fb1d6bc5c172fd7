"""The pruning plan: which channels of which group stay. The one currency between search, surgery and fine-tuning."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.files import write_json
from gnnrl_lightning.core.inputs import described

FORMAT = 1


@dataclass(frozen=True)
class GroupPlan:
    """What one channel group keeps.

    Attributes:
        name: The group's name in `Topology.groups`.
        width: How many channels it had.
        kept: The channels that stay, ascending.
    """

    name: str
    width: int
    kept: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class PruningPlan:
    """Which channels of which group stay. Groups that are not named stay whole.

    Attributes:
        groups: One entry a group, in the order of the network.
        input_shape: Shape of the input that the network was traced with, [N, ...]; where that is more than one tensor,
            what `description` says of them.
        exclude: Names of the parameters that were kept out of the groups.
        keep_ends: Whether the ends of the network were.
        whole: Names of groups that could not be pruned.
        model: How to build the unpruned network again, as `models.factory` reads it; None for a module of the user's.
        data: The images that it was searched on, for fine-tuning: their configuration and the preprocessing that the
            weights expect; None where there is none.
        rewritten: Whether the network is a rewritten graph; see `rewrite`.
        saved: Of the network in `pruned.safetensors`, if there is one: its digest and scores; see `save_pruned`.
        about: Anything worth knowing later (budget, cost, seed); never read by the program.
    """

    groups: tuple[GroupPlan, ...]
    input_shape: Any
    exclude: tuple[str, ...] = ()
    keep_ends: bool = False
    whole: tuple[str, ...] = ()
    model: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    rewritten: bool = False
    saved: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        whole, kept = (sum(widths) for widths in ((group.width for group in self.groups), self.widths))
        return f"PruningPlan of {len(self.groups)} groups: {kept:,} of {whole:,} channels stay"

    @property
    def widths(self) -> list[int]:
        """How many channels each group keeps."""
        return [len(group.kept) for group in self.groups]

    def then(self, second: "PruningPlan") -> "PruningPlan":
        """The plan that does at once what this one and then `second`, made for its pruned network, do.

        Raises:
            UserError: If the pruned network no longer has the same groups.
        """
        mine = [(group.name, len(group.kept)) for group in self.groups]
        others = [(group.name, group.width) for group in second.groups]
        if mine != others:
            lost = sorted({name for name, _ in set(mine) ^ set(others)}) or ["in another order"]
            raise UserError(
                f"the pruned network has other groups than the original ({', '.join(lost[:3])}), as one that shuffles "
                f"channels has, or other settings of exclude and keep_ends: prune in one stage, stages=1 without plan=."
            )
        groups = tuple(
            GroupPlan(first.name, first.width, tuple(first.kept[index] for index in then.kept))
            for first, then in zip(self.groups, second.groups, strict=True)
        )
        return replace(self, groups=groups, saved={}, about=second.about)

    def save(self, path: Path | str) -> None:
        """Writes the plan as JSON, at once or not at all."""
        write_json(Path(path), {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path | str) -> "PruningPlan":
        """Reads a plan.

        Raises:
            UserError: If the file is missing or is not a plan.
        """
        path = Path(path)
        path = path / "plan.json" if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"plan={path} does not exist; give the plan.json of a finished search.")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused)
            version = raw.pop("format")
            if version != FORMAT:
                raise UserError(f"its format is {version} and this version reads {FORMAT}")
            groups = tuple(
                GroupPlan(str(g["name"]), int(g["width"]), tuple(map(int, g["kept"]))) for g in raw["groups"]
            )
            described(raw["input_shape"])
            names = {name: tuple(map(str, raw.get(name, ()))) for name in ("exclude", "whole")}
            plan = cls(**{**raw, "groups": groups, **names})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"plan={path} is not a pruning plan: {reason}.") from error
        for name, value in (("model", plan.model), ("data", plan.data), ("saved", plan.saved), ("about", plan.about)):
            if not isinstance(value, dict | None) or (name in ("saved", "about") and value is None):
                raise UserError(f"plan={path} is not a pruning plan: {name} is {type(value).__name__}.")
        for group in groups:
            kept = group.kept
            if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= group.width:
                raise UserError(
                    f"plan={path}: group {group.name} must keep 1 to {group.width} distinct channels, "
                    f"ascending, numbered from 0."
                )
        if len({group.name for group in groups}) < len(groups):
            raise UserError(f"plan={path} names a group twice; each group has one entry.")
        return plan


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
