"""Every method from the command line, and the comparison that ends the sweep."""

import csv
import json
from pathlib import Path

import pytest
from commands import ROOT, run, run_all

METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
LOOPS = {
    "group_fisher": ["importance.images=64", "importance.interval=1", "importance.channels_per_step=40"],
    "sfp": ["importance.images=64", "importance.epochs=1"],
}
"""Methods that train the network while they choose, and what makes them quick."""


@pytest.fixture(scope="module")
def few(tiny: list[str]) -> list[str]:
    """`tiny` without what only some methods have, and with fewer episodes."""
    return [*(each for each in tiny if not each.startswith(("agent.", "episodes", "recovery."))), "episodes=2"]


@pytest.mark.slow
def test_all_methods_in_one_sweep(few: list[str], tmp_path: Path) -> None:
    methods = [name for name in METHODS if name not in LOOPS]
    sweep = ["-m", f"method={','.join(methods)}", *few, f"hydra.sweep.dir={tmp_path}"]
    (outcome,) = run_all([["search.py", *sweep]], tmp_path)
    assert outcome.code == 0, outcome.err
    with (tmp_path / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["method"] for row in rows) == methods
    assert all(float(row["top1_fine_tuned_mean"]) > 0 for row in rows)
    assert {"comparison.md", "comparison.png", "comparison.svg"} <= {path.name for path in tmp_path.iterdir()}


def choices(folder: Path) -> tuple[str, ...]:
    """What a run took, once it is sure that it is within its budget."""
    results = json.loads((folder / "results.json").read_text())
    assert results["cost_values"]["used"] <= results["allowed"]["cost"]
    return tuple(results[group] for group in ("method", "agent", "importance", "recovery"))


def test_a_preset_may_be_changed(few: list[str], tmp_path: Path) -> None:
    lines = {"amc": ["method=amc", "importance=fpgm"], "refused": ["method=eagleeye", "recovery=none"]}
    commands = [["search.py", *line, *few, f"hydra.run.dir={tmp_path / name}"] for name, line in lines.items()]
    amc, refused = run_all(commands, tmp_path)
    assert amc.code == 0, amc.err
    assert choices(tmp_path / "amc") == ("amc", "amc", "fpgm", "bn")
    assert refused.code == 1 and "images cannot be set of NoRecovery; drop method=" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_a_method_with_a_loop_of_its_own(few: list[str], tmp_path: Path, name: str) -> None:
    outcome = run("search.py", [f"method={name}", *LOOPS[name], *few, f"hydra.run.dir={tmp_path / name}"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert choices(tmp_path / name)[0] == name
    assert json.loads((tmp_path / name / "results.json").read_text())["evaluations"] == 1
