"""Where metrics go: loggers that are always closed, and what a finished run leaves in Weights & Biases."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.core.files import write_json
from gnnrl_lightning.training.run import Run

_FILES = ("plan.json", "pruned.safetensors", "README.md", "report.html", "results.json")
_MADE_BY = "wandb.json"
"""Says in a run's folder which W&B run made its network, and under which name the network is there."""


@contextmanager
def open_loggers(run: Run, job_type: str) -> Iterator[list[Logger]]:
    """The loggers of `conf/logger`; several are possible. Closed at the end, with an exit code if the run failed.

    Jobs of one sweep share the process: a W&B run that is not finished would swallow the next one.

    Args:
        run: Has them from now on; its settings are logged too.
        job_type: What W&B is told the run does, unless the configuration names something else. Only the program knows:
            `train.py` trains, fine-tunes or evaluates, and its plan decides.

    Raises:
        UserError: If W&B is to be online and does not know the user.
    """
    nodes = [node for node in (run.settings["logger"] or {}).values() if isinstance(node, dict) and "_target_" in node]
    logger: list[Logger] = []
    failed = 1
    try:
        for node in nodes:
            known = {"job_type": job_type, "group": _group()} if str(node["_target_"]).endswith("WandbLogger") else {}
            each = instantiate(node, **{name: value for name, value in known.items() if node.get(name) is None})
            logger.append(each)
            if isinstance(each, WandbLogger):
                _begin(each)
            each.log_hyperparams(run.settings)
        for each in _runs(logger):
            each.define_metric("search/episode")
            each.define_metric("search/*", step_metric="search/episode")
            each.define_metric("losses/*", step_metric="search/episode")
            each.define_metric("search/best_reward", step_metric="search/episode", summary="max")
            for stage in ("base", "finetune"):
                each.define_metric(f"{stage}/reward_top1", summary="max")
        run.logger = logger
        yield logger
        failed = 0
    finally:
        run.logger = []
        for each in logger:
            each.finalize("failed" if failed else "success")  # the CSV logger writes what it still holds
        if any(isinstance(each, WandbLogger) for each in logger):
            import wandb

            wandb.finish(exit_code=failed)


def log_metrics(logger: list[Logger], metrics: dict[str, float]) -> None:
    """Sends final numbers to every logger."""
    for each in logger:
        each.log_metrics(metrics)


def log_input(logger: list[Logger], folder: Path, name: str, about: dict[str, Any]) -> None:
    """Tells W&B which network a run starts from, so that its graph leads from the search to the fine-tuning.

    W&B knows an artifact by its content: these files are the version that the search logged. Of a search without W&B
    they become a version now. Which run it was is in the run's configuration as well, to filter and group by.

    Args:
        logger: All of the run.
        folder: Of the run that made the network.
        name: Of the network's artifact where that run had no W&B.
        about: What its plan says of itself: budget, cost, seed, agent.
    """
    path = folder / _MADE_BY
    made_by = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for run in _runs(logger):
        artifact = _artifact(folder, made_by.get("artifact", name))
        if run.offline:
            # `use_artifact` refuses to work offline. What it would record is kept in the run's file by this call, and
            # `wandb sync` carries it out.
            run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        else:
            run.use_artifact(artifact)
        run.config.update({"plan_from": about | made_by})


def log_run(logger: list[Logger], folder: Path, name: str, aliases: Sequence[str] = ()) -> None:
    """Gives W&B what is in a finished run's folder: the episodes as a table, the figures, and the network's files.

    Args:
        logger: All of the run.
        folder: Of the run.
        name: Of the artifact that holds the network.
        aliases: What else this version of it is called, besides `run-<id>` and W&B's `latest`.
    """
    for run in _runs(logger):
        import wandb

        figures = sorted(folder.glob("figures/*.png"))
        media: dict[str, Any] = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
        history = folder / "history.csv"
        if history.is_file():
            with history.open(newline="", encoding="utf-8") as file:
                columns, *rows = csv.reader(file)
            media["search/episodes"] = wandb.Table(columns=columns, data=rows)
        if media:
            run.log(media)
        artifact = _artifact(folder, name)
        for row in artifact.metadata.get("networks", []):
            # Beside test_top1/<network>, so that a dashboard can draw accuracy against cost.
            run.summary.update({f"{key}/{row['name']}": row[key] for key in ("macs", "params", "latency_ms")})
        run.log_artifact(artifact, aliases=[f"run-{run.id}", *aliases])
        write_json(folder / _MADE_BY, {"project": run.project, "run": run.id, "artifact": artifact.name})


def _begin(logger: WandbLogger) -> None:
    """Starts the run in W&B; raises UserError if nobody is logged in."""
    from wandb.errors import AuthenticationError, UsageError

    try:
        _ = logger.experiment
    except (AuthenticationError, UsageError) as error:
        raise UserError(f"W&B does not let this run begin: {error} Or stay offline: logger.offline=true.") from error


def _artifact(folder: Path, name: str) -> Any:
    """The network's files as a W&B artifact, with the run's numbers."""
    import wandb

    results = folder / "results.json"
    numbers = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type="pruned-network", metadata=numbers)
    for path in (folder / name for name in _FILES):
        if path.is_file():
            artifact.add_file(str(path))
    return artifact


def _runs(logger: list[Logger]) -> list[Any]:
    """The W&B runs among the loggers, on the rank that has them."""
    of_wandb = [each for each in logger if isinstance(each, WandbLogger)]
    return [each.experiment for each in of_wandb] if getattr(rank_zero_only, "rank", 0) == 0 else []


def _group() -> str | None:
    """The sweep that a job is of, if it is of one.

    Not an interpolation in `conf/logger`: `${hydra:sweep.dir}` has a value outside sweeps too, and a resolver of our
    own would have to be known in every process that a launcher starts.
    """
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    return Path(hydra.sweep.dir).name if hydra is not None and hydra.mode == RunMode.MULTIRUN else None
