"""Runs the entry points as a user does, in processes of their own.

As a script it runs command lines one after the other: commands.py '[["search.py", "budget=0"], …]' outcomes.json.
"""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def start(script: Path, arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    """Starts a Python script, with what it needs to be quick and offline."""
    inherited = {name: value for name, value in os.environ.items() if name != "RUN_STAMP"}
    settings = {"OMP_NUM_THREADS": "1", "COLUMNS": "140", "WANDB_SILENT": "true"}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        cwd=cwd,
        env=inherited | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, overrides: list[str], cwd: Path) -> Outcome:
    """Runs an entry point to its end."""
    process = start(ROOT / script, overrides, cwd)
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)


def run_all(lines: list[list[str]], cwd: Path) -> list[Outcome]:
    """Runs several command lines in one fresh process, because imports take most of the time."""
    process = start(Path(__file__), [json.dumps(lines), str(cwd / "outcomes.json")], cwd)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return [Outcome(**outcome) for outcome in json.loads((cwd / "outcomes.json").read_text())]


def _main() -> None:
    own, outcomes = sys.argv, []
    for script, *overrides in json.loads(own[1]):
        code, out, err = 0, io.StringIO(), io.StringIO()
        sys.argv = [str(ROOT / script), *overrides]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as end:
                code = int(end.code or 0)
        outcomes.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
    Path(own[2]).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    _main()
