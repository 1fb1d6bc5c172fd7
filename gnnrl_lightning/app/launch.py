"""How a command starts and ends: quiet libraries, one stamp for all ranks, one sentence where the user is at fault."""

import ctypes
import datetime
import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import gnnrl_lightning
from gnnrl_lightning.app.messages import in_plain_words
from gnnrl_lightning.core.checks import UserError
from gnnrl_lightning.training.noise import NOISE

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def launch(main: Callable[[], Any]) -> None:
    """Runs a Hydra application; with `--version` it says which one and ends.

    The exit code is 1 where the user's settings are at fault and 2 where Hydra cannot compose them.
    """
    if "--version" in sys.argv:
        print(f"gnnrl-lightning {gnnrl_lightning.__version__}")
        return
    # Hydra would print its own extract of a traceback; so told, it raises, and one line is all there is.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Each ddp process composes the configuration anew, and must find the same folder.
    os.environ.setdefault("RUN_STAMP", datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3])
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    sys.argv[1:] = [_deletion(argument) for argument in sys.argv[1:]]
    try:
        main()
    except UserError as error:
        _give_up(error, 1)
    except (HydraException, OmegaConfBaseException) as error:
        _give_up(error, 2)


def keep_freed_memory() -> None:
    """Lets glibc keep the memory of freed activations for the next ones instead of giving it back to the system.

    What is given back must be mapped and zeroed again, page by page: 20 to 60 % of a forward pass on a CPU, more or
    less of it with the history of the process, so that equal networks would measure as unequal. Elsewhere, and on other
    systems, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            # Older versions refuse a threshold above 32 MiB.
            _ = mallopt(parameter, 2**30) or mallopt(parameter, 2**25)


def job(story: Callable[[DictConfig], float], config: DictConfig) -> float:
    """Runs one job; a job of a sweep raises, so that the others go on and the summary calls it failed."""
    keep_freed_memory()
    # Here, because it takes seconds to import, which `--help` need not wait for.
    import lightning.pytorch  # noqa: F401  # sets up the loggers that are silenced below
    from lightning.fabric.utilities import rank_zero_only
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    for name in ("lightning.pytorch", "lightning.fabric"):
        # Its hints on hardware and products are not about this run, and its handler would print all else twice.
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    if getattr(rank_zero_only, "rank", 0) > 0:  # what all ranks do is said once
        logging.getLogger("gnnrl_lightning").setLevel(logging.WARNING)
    try:
        try:
            return story(config)
        except MisconfigurationException as error:
            raise UserError(
                f"Lightning refuses to run so ({error}); give another trainer=, e.g. trainer=cpu."
            ) from error
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)  # Lightning would leave with 0, and a scheduler think that all is done
    except UserError as error:
        log.debug("failed", exc_info=True)  # for the file of the log: the screen shows one line
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        _forget(Path(HydraConfig.get().runtime.output_dir))
        _give_up(error, 1)


def _deletion(argument: str) -> str:
    """Hydra refuses logger=null: no option at all of a group is ~logger there."""
    name, _, value = argument.partition("=")
    group = Path(sys.argv[0]).resolve().parent / "conf" / name
    return f"~{name}" if value == "null" and name and group.is_dir() else argument


def _forget(folder: Path) -> None:
    """Removes a run's folder if there is nothing in it but the log of a refusal, which was printed too."""
    if {path.name for path in folder.iterdir()} <= {".hydra", "search.log", "train.log"}:
        logging.shutdown()
        shutil.rmtree(folder)


def _give_up(error: Exception, code: int) -> NoReturn:
    """Says what to do in one line; the traceback is there with `debug=trace`."""
    if "debug=trace" in sys.argv:
        raise error
    text = in_plain_words(error) if isinstance(error, (HydraException, OmegaConfBaseException)) else str(error)
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)
