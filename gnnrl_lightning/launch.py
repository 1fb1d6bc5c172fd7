"""How a command starts and ends: quiet libraries, one stamp for all ranks, one sentence where the user is at fault."""

import datetime
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

log = logging.getLogger(__name__)

_NOISE = (
    ".*torch.jit.*deprecated.*",  # torch-geometric's
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's
    ".*smaller than the logging interval.*",  # an iteration of the search is an epoch of one batch
    ".*does not have many workers.*",  # images in memory come faster without
)
"""Warnings that say nothing to the user of this program."""


def launch(main: Callable[[], Any]) -> None:
    """Runs a Hydra application.

    The exit code is 1 where the user's settings are at fault and 2 where Hydra cannot compose them.
    """
    # Hydra would print its own extract of a traceback; so told, it raises, and one line is all there is.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Each ddp process composes the configuration anew, and must find the same folder.
    os.environ.setdefault("RUN_STAMP", datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3])
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    sys.argv[1:] = [_deletion(argument) for argument in sys.argv[1:]]
    try:
        main()
    except ValueError as error:
        _give_up(error, 1)
    except (HydraException, OmegaConfBaseException) as error:
        _give_up(error, 2)


def job(story: Callable[[DictConfig], float], config: DictConfig) -> float:
    """Runs one job; a job of a sweep raises, so that the others go on and the summary calls it failed."""
    # Here, because it takes seconds to import, which `--help` need not wait for.
    import lightning.pytorch  # noqa: F401  # sets up the loggers that are silenced below
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    for name in ("lightning.pytorch", "lightning.fabric"):
        # Its hints on hardware and products are not about this run, and its handler would print all else twice.
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    try:
        try:
            return story(config)
        except MisconfigurationException as error:
            raise ValueError(
                f"Lightning refuses to run so ({error}); give another trainer=, e.g. trainer=cpu."
            ) from error
    except ValueError as error:
        log.debug("failed", exc_info=True)  # for the file of the log: the screen shows one line
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        _give_up(error, 1)


def _deletion(argument: str) -> str:
    """Hydra refuses logger=null: no option at all of a group is ~logger there."""
    name, _, value = argument.partition("=")
    group = Path(sys.argv[0]).resolve().parent / "conf" / name
    return f"~{name}" if value == "null" and name and group.is_dir() else argument


def _give_up(error: Exception, code: int) -> NoReturn:
    """Says what to do in one line; the traceback is there with `debug=`."""
    if any(argument.startswith("debug=") for argument in sys.argv):
        raise error
    cause = f" ({error.__cause__})" if isinstance(error, HydraException) and error.__cause__ else ""
    hint = ""
    if isinstance(error, OverrideParseException) and "~" in error.override[1:]:  # in front it is Hydra's own, to delete
        hint = " (a path with ~ must be written out, e.g. $HOME/…)"
    print(f"error: {' '.join(f'{error}{cause}{hint}'.split())}", file=sys.stderr)
    sys.exit(code)
