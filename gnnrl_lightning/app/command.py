"""What was typed: the choices of a run and the command that starts it."""

import shlex
import sys

from hydra.core.hydra_config import HydraConfig


def choice(group: str) -> str | None:
    """Which option of a configuration group this run uses; None: none of them."""
    option: str | None = HydraConfig.get().runtime.choices[group]
    return option


def command() -> str:
    """What was typed, or for a job of a sweep what would start it alone; quoted for a shell."""
    hydra = HydraConfig.get()
    return shlex.join([f"{hydra.job.name}.py", *hydra.overrides.task] if hydra.job.name else sys.argv)
