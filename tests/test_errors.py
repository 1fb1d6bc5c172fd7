import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ROOT
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from gnnrl_lightning.app import launch as module
from gnnrl_lightning.app.launch import job, launch
from gnnrl_lightning.core.checks import UserError


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[RunMode], None]:
    def become(mode: RunMode) -> None:
        config = OmegaConf.create({"mode": mode, "runtime": {"output_dir": str(tmp_path)}})
        monkeypatch.setattr(module.HydraConfig, "get", lambda: config)

    (tmp_path / "search.log").touch()

    monkeypatch.setattr("sys.argv", ["search.py"])
    monkeypatch.setenv("RUN_STAMP", "now")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    become(RunMode.RUN)
    return become


def failing(error: Exception) -> Callable[[DictConfig], float]:
    def story(config: DictConfig) -> float:
        raise error

    return story


def parse(override: str) -> None:
    OverridesParser.create().parse_overrides([override])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("budget=0 is\nnot possible."), "error: budget=0 is not possible."),
        (MisconfigurationException("No gpu!"), "error: Lightning refuses to run so (No gpu!); give another trainer="),
    ],
)
def test_the_users_mistake_is_one_line_and_its_traceback_in_the_log(
    mode: Callable[[RunMode], None],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    error: Exception,
    said: str,
) -> None:
    with caplog.at_level(logging.DEBUG, "gnnrl_lightning"), pytest.raises(SystemExit) as end:
        job(failing(error), OmegaConf.create())
    assert end.value.code == 1
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1 and shown[0].startswith(said)
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG and record.exc_info is not None
    assert "in story" in caplog.text and "Traceback" in caplog.text
    assert not tmp_path.exists()  # nothing but the log of the refusal was in the run's folder


def test_what_an_earlier_run_left_is_not_touched(mode: Callable[[RunMode], None], tmp_path: Path) -> None:
    (tmp_path / "plan.json").touch()
    with pytest.raises(SystemExit):
        job(failing(UserError("no")), OmegaConf.create())
    assert {path.name for path in tmp_path.iterdir()} == {"search.log", "plan.json"}


@pytest.mark.parametrize("error", [UserError("no"), MisconfigurationException("no")])
def test_a_job_of_a_sweep_raises(mode: Callable[[RunMode], None], error: Exception) -> None:
    mode(RunMode.MULTIRUN)
    with pytest.raises(ValueError, match="no"):
        job(failing(error), OmegaConf.create())


def test_our_own_mistakes_keep_their_traceback(mode: Callable[[RunMode], None]) -> None:
    with pytest.raises(KeyError):
        launch(lambda: job(failing(KeyError("ours")), OmegaConf.create()))


def test_null_of_a_group_deletes_it(mode: Callable[[RunMode], None], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["logger=null", "callbacks=none", "weights=null", "logger.csv.name=null", "=null", "plan=a=null"]
    monkeypatch.setattr("sys.argv", [str(ROOT / "search.py"), *arguments])
    launch(lambda: None)
    assert sys.argv[1:] == ["~logger", *arguments[1:]]


@pytest.mark.parametrize(
    ("override", "hinted"), [("data.root=~/images", True), ("weights=~me/a.pt", True), ("weights=a=b", False)]
)
def test_a_path_with_a_tilde_is_explained(
    mode: Callable[[RunMode], None], capsys: pytest.CaptureFixture[str], override: str, hinted: bool
) -> None:
    with pytest.raises(SystemExit) as end:
        launch(lambda: parse(override))
    assert end.value.code == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1 and shown[0].startswith("error: ")
    assert shown[0].endswith("(a path with ~ must be written out, e.g. $HOME/…)") == hinted
