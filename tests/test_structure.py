"""The house: imports go one way, and what is long is known."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gnnrl_lightning"
FLOORS = (
    *("core", "settings", "models", "data", "topology", "pruning", "cost", "reconstruction", "problem", "importance"),
    *("nn", "evaluation", "training", "searching", "report", "library", "app"),
)
"""From the ground up: a package imports only what stands below it."""
READS_YAML = {"library/components.py", "report/tables.py", "report/comparison_runs.py"}
"""Below the application these alone may use OmegaConf, to read files."""
LONGEST_FUNCTION = 60
"""Lines without the docstring."""
LONGEST_MODULE = 260
MOST_ARGUMENTS = 8
"""Of a function; a dataclass is a record and may have more fields."""
MAY_HAVE_MORE = (
    *("searching/agents/", "searching/ddpg.py:__init__", "data/module.py:__init__"),  # one a setting in conf/
    *("topology/layers.py:_convolution", "topology/layers.py:_transposed_convolution"),  # those of the operation
    "library/search.py:search",  # a keyword each
)


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # which may be a module too
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_go_one_way() -> None:
    wrong = []
    for path, tree in trees():
        mine = path.with_suffix("").parts[0]
        for name in imported(tree):
            if mine != "__init__" and name.startswith("gnnrl_lightning."):
                other = name.split(".")[1]
                if other in FLOORS and FLOORS.index(other) > FLOORS.index(mine):
                    wrong.append(f"{path} imports {name}")
    assert not wrong


def test_hydra_stops_at_the_door() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, tree in trees()
        if path.parts[0] != "app"
        for name in imported(tree)
        if name.split(".")[0] == "hydra" or (name.split(".")[0] == "omegaconf" and path.as_posix() not in READS_YAML)
    ]
    assert not wrong


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield f"{path}:{node.name}", node


def length(node: ast.FunctionDef) -> int:
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def arguments(node: ast.FunctionDef) -> int:
    names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def within(limit: int, sizes: dict[str, int], what: str) -> bool:
    """Whether all are; says which are the largest."""
    largest = sorted(sizes.items(), key=lambda each: -each[1])[:5]
    print(f"{what}, at most {limit}:", ", ".join(f"{name} {size}" for name, size in largest))
    return largest[0][1] <= limit


def test_nothing_is_long() -> None:
    modules = {str(path): len((PACKAGE / path).read_text().splitlines()) for path, _ in trees()}
    counted = [(name, node) for name, node in functions() if not name.startswith(MAY_HAVE_MORE)]
    found = [
        within(LONGEST_FUNCTION, {name: length(node) for name, node in functions()}, "lines of a function"),
        within(LONGEST_MODULE, modules, "lines of a module"),
        within(MOST_ARGUMENTS, {name: arguments(node) for name, node in counted}, "arguments"),
    ]
    assert all(found)
