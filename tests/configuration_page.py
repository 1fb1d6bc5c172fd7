"""Writes docs/configuration.md from the code that the settings are in. `python tests/test_docs.py` calls it."""

import ast
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from gnnrl_lightning.app.config import SearchConfig, TrainConfig
from gnnrl_lightning.settings import FinishConfig, FitConfig, RefitConfig, SearchSettings

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "gnnrl_lightning" / name for name in ("settings.py", "app/config.py")]
GROUPS = (
    "model",
    "data",
    "agent",
    "cost",
    "importance",
    "recovery",
    "method",
    "trainer",
    "launcher",
    "logger",
    "debug",
)
PARTS = (FitConfig, RefitConfig, FinishConfig)


def documented() -> dict[tuple[str, str], str]:
    """What is said of each field, by class and name."""
    found = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                for each, after in zip(node.body, node.body[1:], strict=False):
                    if isinstance(each, ast.AnnAssign) and isinstance(after, ast.Expr):
                        assert isinstance(each.target, ast.Name) and isinstance(after.value, ast.Constant)
                        found[node.name, each.target.id] = str(after.value.value)
    return found


def rows(kind: type, prefix: str = "", instance: Any = None) -> list[str]:
    """The rows of a table: each setting, its default, and what it is for."""
    said, lines = documented(), []
    for each in fields(kind):
        owner = next(base.__name__ for base in kind.__mro__ if (base.__name__, each.name) in said)
        text = said[owner, each.name].replace("|", "\\|").replace("null", "`null`")
        default = each.default if each.default is not MISSING else each.default_factory()  # type: ignore[misc]
        value = default if instance is None else getattr(instance, each.name)
        if each.type is Any or isinstance(value, PARTS):
            continue
        shown = "**must be given**" if value == "???" else f"`{_typed(value)}`"
        lines.append(f"| `{prefix}{each.name}` | {shown} | {text} |")
    return lines


def written() -> str:
    """The whole page."""
    search, train = SearchConfig(), TrainConfig()
    parts = {
        "refit": ("New weights in closed form for the channels that stay", RefitConfig, search.refit),
        "finish": ("What the pruned network learns without labels", FinishConfig, search.finish),
        "base": ("Training of a network that has no weights yet", FitConfig, search.base),
        "finetune": ("Fine-tuning at the end of a search", FitConfig, search.finetune),
    }
    shared = {each.name for each in fields(SearchSettings)}
    everything = rows(SearchConfig)
    library = [row for row in everything if re.match(r"\| `(\w+)`", row)[1] in shared]  # type: ignore[index]
    command = [row for row in everything if row not in library]
    lines = [
        "# Settings",
        "",
        "Written by `python tests/test_docs.py` from the code that holds the defaults; do not edit it here. Every line "
        "is an override of its command, as in `python search.py model=resnet20 budget=0.5 episodes=100`. Those of "
        "[the search](#the-search) are arguments of `gl.search` as well, with the same defaults: "
        "`gl.search(model, data, budget=0.5, episodes=100)`; `refit` and `finish` are mappings there, "
        '`finish={"steps": 500}`, or `False`.',
        "",
        "`python search.py --help` prints all values as they are composed; `--cfg job` with overrides prints those of "
        "a run without starting it. A run's own are in its `config.yaml`.",
        "",
        "## Groups",
        "",
        "A group is chosen by name, `agent=amc`, and its settings are overridden behind a dot, `agent.lr=1e-3`; the "
        "files say what each is for.",
        "",
        "| group | options |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {_options(name)} |" for name in GROUPS]
    table = ["| setting | default | what it is for |", "|---|---|---|"]
    lines += ["", "## The search", "", *table, *library]
    for name in ("refit", "finish"):
        title, kind, instance = parts[name]
        lines += ["", f"### `{name}`: {title[0].lower()}{title[1:]}", "", *table, *rows(kind, f"{name}.", instance)]
    lines += ["", "## search.py alone", "", *table, *command]
    for name in ("base", "finetune"):
        title, kind, instance = parts[name]
        lines += ["", f"### `{name}`: {title[0].lower()}{title[1:]}", "", *table, *rows(kind, f"{name}.", instance)]
    lines += ["", "## train.py", "", *table, *rows(TrainConfig), *rows(FitConfig, "fit.", train.fit)]
    return "\n".join(lines).replace("| `base.epochs` | `100` |", "| `base.epochs` | `${data.epochs}` |") + "\n"


def _options(group: str) -> str:
    paths = sorted((ROOT / "conf" / group).glob("*.yaml"))
    return ", ".join(f"[`{path.stem}`](../conf/{group}/{path.name})" for path in paths)


def _typed(value: Any) -> str:
    """As it is typed on a command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
