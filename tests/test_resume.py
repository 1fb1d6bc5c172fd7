import csv
import json
import time
from pathlib import Path

import pytest
from commands import ROOT, Outcome, run, start

EPISODES = 24


def history(folder: Path) -> list[dict[str, str]]:
    path = folder / "history.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def curve_of(folder: Path) -> list[dict[str, float]]:
    curve: list[dict[str, float]] = json.loads((folder / "results.json").read_text())["recovery_curve"]
    return curve


def test_a_killed_search_ends_as_the_uninterrupted_one(
    finished: tuple[Path, Outcome], tiny: list[str], tmp_path: Path
) -> None:
    whole, outcome = finished
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "run"
    overrides = [*tiny, f"hydra.run.dir={folder}"]
    process = start(ROOT / "search.py", overrides, tmp_path)
    deadline = time.monotonic() + 120
    # Past the first iteration, which opens with the closed forms: only then there is a checkpoint for certain.
    while len(history(folder)) < 11 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert 11 <= len(history(folder)) < EPISODES, "killed too late to show anything"
    assert not (folder / "plan.json").exists()
    assert history(folder) == history(whole)[: len(history(folder))]
    other = run("search.py", [*overrides, "trainer.precision=bf16-mixed"], tmp_path)  # its rewards are others
    assert other.code != 0 and "is of a run with trainer.precision=32-true" in other.err

    resumed = run("search.py", overrides, tmp_path)
    assert resumed.code == 0, resumed.err
    assert "resuming from" in resumed.out
    assert history(folder) == history(whole)
    for name in ("plan.json", "pruned.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_finished_search_is_not_run_again(finished: tuple[Path, Outcome], tiny: list[str], tmp_path: Path) -> None:
    folder, _ = finished
    before = {name: (folder / name).stat().st_mtime_ns for name in ("results.json", "plan.json", "report.html")}
    again = run("search.py", [*tiny, f"hydra.run.dir={folder}"], tmp_path)
    assert again.code == 0 and "has ended with these settings" in again.out
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before


def test_a_killed_training_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    settings = "model=mobilenet_v2 data=digits fit.epochs=3 fit.lr=0.05 fit.mixup=0.2 fit.ema_decay=0.9 trainer=cpu"
    small = "model.kwargs={width_mult: 0.1} data.test_images=800 data.reward_images=100 logger=null callbacks=none"
    overrides = [*settings.split(), *small.replace(": ", ":").split()]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    first = run("train.py", [*overrides, f"hydra.run.dir={whole}"], tmp_path)
    assert first.code == 0, first.err
    process = start(ROOT / "train.py", [*overrides, f"hydra.run.dir={folder}"], tmp_path)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").is_file() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()  # in the second epoch
    process.communicate()
    assert not (folder / "results.json").exists(), "killed too late to show anything"
    other = run("train.py", [*overrides, "fit.lr=0.1", f"hydra.run.dir={folder}"], tmp_path)
    assert other.code == 1 and "lr=0.05" in other.err and len(other.err.splitlines()) == 1
    resumed = run("train.py", [*overrides, f"hydra.run.dir={folder}"], tmp_path)
    assert resumed.code == 0 and "resuming from" in resumed.out, resumed.err
    name = "mobilenet_v2.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    curve = curve_of(folder)
    assert curve == curve_of(whole)
    # An epoch is seven steps, so that none ends with a validation but the last.
    assert [point["images"] for point in curve] == [128 * steps for steps in (5, 10, 15, 20, 21)]


@pytest.mark.slow
def test_a_search_on_two_ranks(tiny: list[str], tmp_path: Path) -> None:
    overrides = [*tiny, "trainer=ddp_cpu", "episodes=7", f"hydra.run.dir={tmp_path / 'run'}"]
    outcome = run("search.py", overrides, tmp_path)
    assert outcome.code == 0, outcome.err
    assert len(history(tmp_path / "run")) == 7
    assert (tmp_path / "run" / "report.html").is_file()
    assert [point["images"] for point in curve_of(tmp_path / "run")] == [0, 2 * 128]
