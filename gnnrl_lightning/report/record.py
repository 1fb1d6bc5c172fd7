"""Reads what a search left in its folder, so that a report can be built from the folder at any time."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.topology.outline import Layer, read_layers


@dataclass(frozen=True)
class Episode:
    """One line of history.csv: what was tried, what it costs and what it scored."""

    number: int
    reward: float
    """On the reward images of the search; see `Protocol` for what it is."""
    best_reward: float
    """The highest reward up to and including this episode."""
    cost_ratio: float
    """Cost as a fraction of the original's, in (0, 1]."""
    widths: tuple[int, ...]
    """Channels kept, one number per group."""


@dataclass(frozen=True)
class Group:
    """One channel group of plan.json."""

    name: str
    width: int
    kept: int

    @property
    def ratio(self) -> float:
        """The fraction of its channels that stay."""
        return self.kept / self.width


@dataclass(frozen=True)
class ErrorCurve:
    """One channel group of curves.json, as it is before this search: a stage before may have made it narrower."""

    name: str
    width: int
    kept: int
    """Channels in the network that was found."""
    uniform: int
    """Channels where every group loses the same fraction, at the same budget."""
    errors: tuple[float, ...]
    """What the network's scores lose at widths 0 to all, [width + 1]."""


@dataclass(frozen=True)
class Record:
    """A finished search: what is in results.json, history.csv, plan.json, config.yaml, layers.json and curves.json."""

    results: dict[str, Any]
    episodes: list[Episode]
    groups: list[Group]
    own: bool = False
    """Whether the network is of the user's own, who must give it to load the result."""
    config: str = ""
    """Every setting, as YAML."""
    layers: list[Layer] = field(default_factory=list)
    """The outline of the pruned network; empty where the run wrote none."""
    curves: list[ErrorCurve] = field(default_factory=list)
    """Of all groups; empty where the run computed none."""

    @property
    def recovery(self) -> list[dict[str, float]]:
        """Accuracy in % on the reward split after so many training images; empty if nothing was fine-tuned."""
        curve: list[dict[str, float]] = self.results.get("recovery_curve", [])
        return curve

    @property
    def chosen(self) -> Episode:
        """The first episode that proposed the plan."""
        widths = tuple(group.kept for group in self.groups)
        matches = [episode for episode in self.episodes if episode.widths == widths]
        assert matches, "plan.json and history.csv come from different searches"
        return matches[0]

    @property
    def best(self) -> Episode:
        """The first episode with the highest reward."""
        return max(self.episodes, key=lambda episode: episode.reward)


def read_record(folder: Path) -> Record:
    """Read a finished search.

    Raises:
        UserError: a file is missing, so the search has not finished or the folder is another one.
    """
    for name in ("results.json", "history.csv", "plan.json"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no {name}; give the folder of a finished search, e.g. outputs/search/<run>."
            )
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        episodes = [
            Episode(
                number=int(row["episode"]),
                reward=float(row["reward"]),
                best_reward=float(row["best_reward"]),
                cost_ratio=float(row["cost_ratio"]),
                widths=tuple(int(width) for width in row["widths"].split()),
            )
            for row in csv.DictReader(file)
        ]
    if not episodes:
        raise UserError(f"{folder / 'history.csv'} holds no episode; give the folder of a finished search.")
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    groups = [Group(group["name"], group["width"], len(group["kept"])) for group in plan["groups"]]
    own = plan.get("model") is None or plan["model"]["spec"]["source"] == "module"
    config = folder / "config.yaml"
    settings = config.read_text(encoding="utf-8") if config.is_file() else ""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    outline = folder / "layers.json"
    layers = read_layers(outline) if outline.is_file() else []
    return Record(results, episodes, groups, own, settings, layers, _read_curves(folder / "curves.json"))


def _read_curves(file: Path) -> list[ErrorCurve]:
    """The error curves of all groups; none where there is no such file."""
    if not file.is_file():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    return [
        ErrorCurve(group["name"], group["width"], group["kept"], uniform, tuple(group["errors"]))
        for group, uniform in zip(content["groups"], content["plans"]["uniform"], strict=True)
    ]
