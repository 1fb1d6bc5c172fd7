"""A run's folder: opened, found ended, or begun anew."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from gnnrl_lightning.core.files import write_text
from gnnrl_lightning.training.run import Run


def open_run(config: DictConfig) -> Run:
    """The run of a composed configuration; nothing is written yet."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    return Run(
        folder=Path(settings["paths"]["run"]),
        settings=settings,
        options=lambda: instantiate(settings["trainer"], _convert_="all"),
        callbacks=lambda: [instantiate(each) for each in (settings["callbacks"] or {}).values()],
    )


def has_ended(run: Run) -> bool:
    """Whether the folder holds a finished run of these very settings, so that a sweep typed again only fills gaps."""
    if not all((run.folder / name).is_file() for name in ("results.json", "report.html", "config.yaml")):
        return False
    elsewhere = {"paths": None, "logger": None}  # where it lies and is logged may change from start to start
    return settings_in(run.folder) | elsewhere == run.settings | elsewhere


def write_settings(run: Run) -> None:
    """Writes `config.yaml` and removes results of other settings, which would pass for the results of these."""
    for name in ("results.json", "curves.json", "report.html"):
        (run.folder / name).unlink(missing_ok=True)
    write_text(run.folder / "config.yaml", OmegaConf.to_yaml(run.settings))


def settings_in(folder: Path) -> dict[str, Any]:
    """The settings that a run wrote."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(settings, dict)
    return settings
