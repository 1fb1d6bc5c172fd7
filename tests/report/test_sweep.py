import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MakeRun = Callable[..., Path]

APP = """
import shutil
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg):
    if cfg.budget == cfg.fail_at:
        raise ValueError("budget is broken")
    shutil.copytree(cfg.source, HydraConfig.get().runtime.output_dir, dirs_exist_ok=True)

main()
"""

CONFIG = """
budget: 1
fail_at: 0
source: ???
hydra:
  sweep:
    dir: sweep/${now:%H-%M-%S-%f}
  callbacks:
    summary:
      _target_: gnnrl_lightning.app.sweep.SweepSummary
"""


@pytest.mark.parametrize("fail_at", [0, 2])
def test_hydra_sweep_ends_with_one_summary(tmp_path: Path, make_run: MakeRun, fail_at: int) -> None:
    finished = make_run(tmp_path / "finished")
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "app.yaml").write_text(CONFIG)
    ended = subprocess.run(
        [sys.executable, "app.py", "-m", "budget=1,2,3", f"fail_at={fail_at}", f"source={finished}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode == 0) == (fail_at == 0), ended.stderr
    [summary] = tmp_path.glob("sweep/*/summary.csv")
    with summary.open(newline="") as file:
        rows = list(csv.DictReader(file))
    status = ["done", "failed" if fail_at else "done", "done"]
    assert [(row["folder"], row["status"]) for row in rows] == list(zip("012", status, strict=True))
    assert rows[2]["top1_fine_tuned"] == "92.1" and float(rows[2]["params_percent"]) == 50
    assert ended.stdout.count("Sweep written to") == 1
    assert ("failed" in ended.stdout) == bool(fail_at)
    assert "92.10" in ended.stdout
    picture = summary.with_name("summary.svg").read_text()
    assert "<svg" in picture and summary.with_name("summary.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_without_jobs_writes_nothing(tmp_path: Path) -> None:
    from gnnrl_lightning.app.sweep import summarise

    summarise(tmp_path)
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)
    summarise(tmp_path)


def test_a_sweep_over_methods_ends_with_their_comparison(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    from gnnrl_lightning.app.sweep import summarise

    make_run(tmp_path / "0", agent="amc_agent", method="amc")
    make_run(tmp_path / "1", agent="amc_agent", method="amc", seed=1)
    (tmp_path / "2" / ".hydra").mkdir(parents=True)
    (tmp_path / "2" / ".hydra" / "overrides.yaml").write_text("- method=gnnrl\n")
    summarise(tmp_path)
    assert not list(tmp_path.glob("comparison.*")) and "Comparison" not in capsys.readouterr().out

    make_run(tmp_path / "2", agent="random", method=None)  # an agent that no method names
    summarise(tmp_path)
    assert {path.suffix for path in tmp_path.glob("comparison.*")} == {".csv", ".md", ".png", ".svg"}
    assert "Comparison written to" in capsys.readouterr().out
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["amc", "amc", ""]
    page = (tmp_path / "comparison.md").read_text()
    assert "| random | 1 |" in page and "| amc | 2 |" in page


def test_a_sweep_over_parts_of_one_method_is_a_comparison_too(tmp_path: Path, make_run: MakeRun) -> None:
    from gnnrl_lightning.app.sweep import summarise

    for job, importance in enumerate(("l1", "fpgm")):
        make_run(tmp_path / str(job), importance=importance)
        make_run(tmp_path / str(job + 2), importance=importance, seed=1)
    summarise(tmp_path)
    page = (tmp_path / "comparison.md").read_text()
    assert "(importance=l1) | 2 |" in page and "(importance=fpgm) | 2 |" in page


def test_a_sweep_of_trainings_has_no_summary_of_searches(tmp_path: Path) -> None:
    from gnnrl_lightning.app.sweep import summarise

    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "0" / ".hydra" / "overrides.yaml").write_text("- seed=0\n")
    (tmp_path / "0" / "results.json").write_text('{"model": "resnet20", "data": "digits", "stage": "base", "top1": {}}')
    summarise(tmp_path)
    assert not (tmp_path / "summary.csv").exists()
