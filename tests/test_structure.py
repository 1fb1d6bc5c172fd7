"""The house: imports go one way, and what is long is known."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gnnrl_lightning"
FLOORS = (
    *("core", "settings", "models", "data", "topology", "pruning", "cost", "reconstruction", "problem", "importance"),
    *("nn", "evaluation", "training", "searching", "library", "report", "app"),
)
"""From the ground up: a package imports only what stands below it."""
HYDRA_ENDS = (
    "core",
    "settings",
    "topology",
    "pruning",
    "cost",
    "reconstruction",
    "problem",
    "importance",
    "nn",
    "evaluation",
)
"""Nothing in these knows of Hydra or its configurations."""
LONGEST = 60
"""Lines of a function without its docstring."""
TOO_LONG = {"app/train.py:train"}
"""Those that are longer still."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_go_one_way() -> None:
    wrong = []
    for path, tree in trees():
        mine = path.with_suffix("").parts[0]
        for name in imported(tree):
            if mine != "__init__" and name.startswith("gnnrl_lightning."):
                other = name.split(".")[1]
                if FLOORS.index(other) > FLOORS.index(mine):
                    wrong.append(f"{path} imports {name}")
    assert not wrong


def test_hydra_stops_at_the_door() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, tree in trees()
        if path.with_suffix("").parts[0] in HYDRA_ENDS
        for name in imported(tree)
        if name.split(".")[0] in ("hydra", "omegaconf")
    ]
    assert not wrong


def test_functions_are_short() -> None:
    lengths = {}
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                docstring = (first.end_lineno or 0) - first.lineno + 1 if told else 0
                lengths[f"{path}:{node.name}"] = (node.end_lineno or 0) - node.lineno + 1 - docstring
    longest = sorted(lengths.items(), key=lambda each: -each[1])[:5]
    print("longest functions:", ", ".join(f"{name} {length}" for name, length in longest))
    assert {name for name, length in lengths.items() if length > LONGEST} == TOO_LONG
