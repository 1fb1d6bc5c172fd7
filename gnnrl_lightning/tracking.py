"""Where metrics go: loggers that are always closed, and what a finished run leaves in Weights & Biases."""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

_FILES = ("plan.json", "pruned.safetensors", "README.md", "report.html", "results.json")


@contextmanager
def open_loggers(config: DictConfig, job_type: str) -> Iterator[list[Logger]]:
    """The loggers of `conf/logger`; several are possible. Closed at the end, with an exit code if the run failed.

    Jobs of one sweep share the process: a W&B run that is not finished would swallow the next one. In W&B they are a
    group.
    """
    nodes = [node for node in (config.logger or {}).values() if isinstance(node, DictConfig) and "_target_" in node]
    logger: list[Logger] = []
    failed = 1
    try:
        for node in nodes:
            of_wandb = str(node._target_).endswith("WandbLogger")
            each = instantiate(node, **({"job_type": job_type, "group": _group()} if of_wandb else {}))
            logger.append(each)
            each.log_hyperparams(OmegaConf.to_container(config, resolve=True))
        for run in _runs(logger):
            run.define_metric("search/episode")
            run.define_metric("search/*", step_metric="search/episode")
            run.define_metric("losses/*", step_metric="search/episode")
            run.define_metric("search/best_reward", step_metric="search/episode", summary="max")
            for stage in ("base", "finetune"):
                run.define_metric(f"{stage}/reward_top1", summary="max")
        yield logger
        failed = 0
    finally:
        for each in logger:
            each.finalize("failed" if failed else "success")  # the CSV logger writes what it still holds
        if any(isinstance(each, WandbLogger) for each in logger):
            import wandb

            wandb.finish(exit_code=failed)


def log_metrics(logger: list[Logger], metrics: dict[str, float]) -> None:
    """Sends final numbers to every logger."""
    for each in logger:
        each.log_metrics(metrics)


def log_run(logger: list[Logger], folder: Path, name: str, aliases: list[str]) -> None:
    """Gives W&B what is in a finished run's folder: the episodes as a table, the figures, and the network's files.

    Args:
        logger: All of the run.
        folder: Of the run.
        name: Of the artifact that holds the network.
        aliases: What else this version of it is called.
    """
    for run in _runs(logger):
        import wandb

        history = folder / "history.csv"
        if history.is_file():
            with history.open(newline="", encoding="utf-8") as file:
                columns, *rows = csv.reader(file)
            run.log({"search/episodes": wandb.Table(columns=columns, data=rows)})
        run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in sorted(folder.glob("figures/*.png"))})
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type="pruned-network")
        for path in (folder / name for name in _FILES):
            if path.is_file():
                artifact.add_file(str(path))
        run.log_artifact(artifact, aliases=aliases)


def _runs(logger: list[Logger]) -> list[Any]:
    """The W&B runs among the loggers, on the rank that has them."""
    of_wandb = [each for each in logger if isinstance(each, WandbLogger)]
    return [each.experiment for each in of_wandb] if getattr(rank_zero_only, "rank", 0) == 0 else []


def _group() -> str | None:
    """The sweep that a job is of, if it is of one."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    return Path(hydra.sweep.dir).name if hydra is not None and hydra.mode == RunMode.MULTIRUN else None
