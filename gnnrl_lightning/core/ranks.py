"""Processes that work on one thing: the ranks of a search, and jobs that start at the same time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from torch import distributed, nn

from gnnrl_lightning.core.checks import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE = 30.0
"""Seconds for which ranks wait for the first one at a time: a collective operation would not wait for hours."""


def agreed(value: T) -> T:
    """What the first of the ranks that search together has found, since a single differing image gives them others.

    A collective operation: all of them must call it. In a process alone it is the value itself.

    Args:
        value: Anything that can be pickled, tensors on the CPU.
    """
    if not _together():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def is_first() -> bool:
    """Whether this process is the first of the ranks that were joined, or alone."""
    return not _together() or distributed.get_rank() == 0


def hand_on_weights(network: nn.Module) -> None:
    """Gives every rank the first one's tensors, in place: ranks whose loaders give them other data have others."""
    if _together():
        state = {name: value.cpu() for name, value in network.state_dict().items()}
        network.load_state_dict(agreed(state))


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lets one job after another make what lies at a path: who comes later waits, and finds it made.

    Of ranks that search together the first one waits, and the others with it.

    Args:
        path: What is made; beside it a hidden lock is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        if not agreed(_acquired(lock, 0.0)):
            log.info("waiting for another job, which makes %s", path)
            while not agreed(_acquired(lock, _PATIENCE)):
                pass
        yield
    finally:
        lock.release()


@contextmanager
def only(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a run's folder, where both would write the same files.

    Raises:
        UserError: If there is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another process is at work in {folder}; wait for it, or give another hydra.run.dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: FileLock, seconds: float) -> bool:
    """Whether this rank may begin; all but the first may always."""
    if not is_first():
        return True
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True
