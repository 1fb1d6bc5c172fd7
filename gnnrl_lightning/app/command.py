"""What was typed: the choices of a run and the command that starts it; and what to type for its network."""

import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from gnnrl_lightning.models.factory import ModelSpec


def choice(group: str) -> str | None:
    """Which option of a configuration group this run uses; None: none of them."""
    option: str | None = HydraConfig.get().runtime.choices[group]
    return option


def command() -> str:
    """What was typed, or for a job of a sweep what would start it alone; quoted for a shell."""
    hydra = HydraConfig.get()
    return shlex.join([f"{hydra.job.name}.py", *hydra.overrides.task] if hydra.job.name else sys.argv)


def how_to_load(spec: ModelSpec, folder: Path) -> str:
    """What to type for the pruned network; one of the user's own is built by the user."""
    return f"gl.load_pruned({str(folder)!r}{', model=…' if spec.source == 'module' else ''})"
