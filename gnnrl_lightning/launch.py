"""How a command ends when the user is at fault: one sentence and exit code 1."""

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException


def launch(main: Callable[[], Any]) -> None:
    """Runs a Hydra application; with `debug=…` an error shows its traceback, otherwise one line says what to do."""
    # Hydra would print its own extract of a traceback; so told, it raises, and the line below is all there is.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # One stamp for all ranks: each ddp process composes the configuration anew, and must find the same folder.
    os.environ.setdefault("RUN_STAMP", _stamp())
    warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated.*")
    try:
        main()
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        if any(argument.startswith("debug=") for argument in sys.argv):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _stamp() -> str:
    import datetime

    return datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]
