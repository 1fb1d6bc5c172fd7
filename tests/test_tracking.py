"""What Weights & Biases is given, read back from the files of offline runs."""

import csv
import json
import sys
from pathlib import Path

import pytest
import yaml
from commands import ROOT, Outcome, start
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb_file import OfflineRun, read

from gnnrl_lightning.app.config import SearchConfig, register, typed
from gnnrl_lightning.app.run import open_run
from gnnrl_lightning.app.tracking import open_loggers

STOPPING = """
import os, signal, sys

sys.path.insert(0, sys.argv.pop(1))

import commands
from gnnrl_lightning.problem.environment import PruningEnv


def fail():
    from gnnrl_lightning.core.checks import UserError

    raise UserError("the disk is full")


signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

# What happens in the middle of one search after the other.
stops = iter([
    fail,
    lambda: None,
    lambda: os.kill(os.getpid(), signal.SIGTERM),
    lambda: os.kill(os.getpid(), signal.SIGINT),
])
known, met = PruningEnv.reward, set()


def reward(self, widths):
    if len(self.rewards) == 3 and self not in met:
        met.add(self)
        next(stops)()
    return known(self, widths)


PruningEnv.reward = reward
commands._main()
"""
NETWORK = {"plan.json", "pruned.safetensors", "README.md", "results.json"}
SWEEP = yaml.safe_load((ROOT / "conf" / "wandb_sweep.yaml").read_text())


@pytest.fixture(scope="module")
def runs(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Outcome]]:
    """Runs with W&B, in one process: a sweep of two searches whose first fails, what follows the second, and others."""
    folder = tmp_path_factory.mktemp("tracking")
    quick = [*tiny, "episodes=6", "start=paper", "logger=wandb"]
    train = ["train.py", f"plan={folder}/sweep/1/plan.json", "fit.max_steps=1", "trainer=cpu", "logger=wandb"]
    lines = {
        "sweep": ["search.py", "-m", *quick, "seed=1,2", "logger.wandb.tags=[paper]"],
        "train": [*train, "logger.wandb.group=tuned", "logger.wandb.job_type=second"],
        "evaluate": [*train, "stage=evaluate"],
        "SIGTERM": ["search.py", *quick, "agent=random"],
        "SIGINT": ["search.py", *quick, "agent=random"],
    }
    placed = [
        [*line, f"hydra.{'sweep' if '-m' in line else 'run'}.dir={folder / name}"] for name, line in lines.items()
    ]
    script = folder / "stopping.py"
    script.write_text(STOPPING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(folder))  # else the artifacts' files would stay in the home folder
        process = start(script, [str(ROOT / "tests"), json.dumps(placed), str(folder / "outcomes.json")], folder)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    ended = json.loads((folder / "outcomes.json").read_text())
    return folder, {name: Outcome(**each) for name, each in zip(lines, ended, strict=True)}


def run_of(folder: Path) -> OfflineRun:
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return read(path)


def test_a_search(runs: tuple[Path, dict[str, Outcome]]) -> None:
    folder = runs[0] / "sweep" / "1"
    run = run_of(folder)
    results = json.loads((folder / "results.json").read_text())
    assert run.job_type == "search" and run.tags == ["paper"] and run.exit_code == 0
    assert run.config["budget"] == 0.5 and run.config["agent"]["lr"] == 0.003
    assert run.steps["search/*"] == run.steps["losses/*"] == "search/episode"
    assert {"losses/approx_kl", "search/episodes", "figures/reward", "base/reward_top1"} <= run.history
    with (folder / "history.csv").open(newline="") as file:
        *_, last = csv.DictReader(file)
    assert run.summary["search/best_reward"] == {"max": pytest.approx(float(last["best_reward"]))}
    assert run.summary["search/winner_reward"] == pytest.approx(results["reward"]["whole_split"])
    for stage in results["networks"]:
        assert run.summary[f"macs/{stage['name']}"] == stage["macs"]
        assert run.summary[f"test_top1/{stage['name']}"] == pytest.approx(stage["top1"])
    assert run.artifacts["resnet20-digits"] == {*NETWORK, "report.html"}
    assert run.aliases["resnet20-digits"] == {"latest", "flops-0.5", f"run-{run.id}"}
    assert run.used == {}


def test_each_job_of_a_sweep_is_a_run(runs: tuple[Path, dict[str, Outcome]]) -> None:
    folder, outcomes = runs
    assert "the disk is full" in outcomes["sweep"].err
    failed, other = run_of(folder / "sweep" / "0"), run_of(folder / "sweep" / "1")
    assert failed.exit_code == 1 and other.exit_code == 0
    assert failed.id != other.id and failed.group == other.group == "sweep"
    assert (failed.config["seed"], other.config["seed"]) == (1, 2)
    assert "resnet20-digits" not in failed.artifacts


def test_a_fine_tuning_is_linked_to_its_search(runs: tuple[Path, dict[str, Outcome]]) -> None:
    folder, outcomes = runs
    assert outcomes["train"].code == 0, outcomes["train"].err
    search, run = run_of(folder / "sweep" / "1"), run_of(folder / "train")
    assert run.used == {"resnet20-digits": search.digests["resnet20-digits"]}, "it is the version of the search"
    about = {"budget": 0.5, "cost": "flops", "seed": 2, "agent": "gnnrl"}
    made_by = {"project": "gnnrl-lightning", "run": search.id, "artifact": "resnet20-digits"}
    assert run.config["plan_from"] == about | made_by
    assert run.artifacts == {"resnet20-digits-fine-tuned": NETWORK}
    assert run.aliases["resnet20-digits-fine-tuned"] == {"latest", f"run-{run.id}"}
    assert run.job_type == "second" and run.group == "tuned", "the configuration goes before what the program knows"


def test_an_evaluation_makes_no_network(runs: tuple[Path, dict[str, Outcome]]) -> None:
    folder, outcomes = runs
    assert outcomes["evaluate"].code == 0, outcomes["evaluate"].err
    run = run_of(folder / "evaluate")
    assert run.job_type == "evaluate" and run.group == "" and run.exit_code == 0 and "test_top1/after" in run.summary
    assert run.used == run_of(folder / "train").used and run.artifacts == {}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stopped_run_is_not_called_finished(runs: tuple[Path, dict[str, Outcome]], name: str) -> None:
    folder, outcomes = runs
    run = run_of(folder / name)
    assert run.exit_code == 1
    if name == "SIGTERM":
        assert outcomes[name].code == 143
    assert run.artifacts == {} and not (folder / name / "plan.json").exists()


def config_of(name: str, overrides: list[str]) -> DictConfig:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, ["paths.root=/root", "paths.run=/run", *overrides])


def test_nobody_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_STAMP", "now")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    config = config_of("search", ["model=resnet20", "budget=0.5", "logger=wandb", "logger.offline=false"])
    with (
        pytest.raises(ValueError, match=r"wandb login.*logger\.offline=true"),
        open_loggers(open_run(config), "search"),
    ):
        raise AssertionError("it has begun")


def ends(parameter: dict) -> tuple:
    """Two of the values that W&B may try."""
    values = parameter.get("values") or [parameter.get("value", parameter.get("min")), parameter.get("max")]
    return values[0], values[-1] if values[-1] is not None else values[0]


@pytest.mark.parametrize("end", [0, 1])
def test_the_command_of_the_sweep_file(end: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_STAMP", "now")
    drawn = {name: ends(parameter)[end] for name, parameter in SWEEP["parameters"].items()}
    known = create_sweep_command_args({"args": {name: {"value": value} for name, value in drawn.items()}})
    known |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [SWEEP["program"]]}
    parts = [known[part[2:-1]] if part.startswith("${") else [part] for part in create_sweep_command(SWEEP["command"])]
    env, interpreter, program, *overrides = [word for part in parts for word in part]
    assert (env, interpreter) == ("/usr/bin/env", sys.executable) and (ROOT / program).is_file()
    config = config_of(Path(program).stem, overrides)
    assert isinstance(typed(config, SearchConfig), SearchConfig)
    for name, value in drawn.items():
        assert name == "model" or OmegaConf.select(config, name) == value
    assert config.model.name == drawn["model"]
    assert config.logger.offline is False and config.logger.project == SWEEP["project"]


def test_the_metric_of_the_sweep_file_is_logged(runs: tuple[Path, dict[str, Outcome]]) -> None:
    folder, _ = runs
    assert SWEEP["metric"]["goal"] == "maximize"
    assert isinstance(run_of(folder / "sweep" / "1").summary[SWEEP["metric"]["name"]], int | float)
