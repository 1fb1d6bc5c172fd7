"""The training images that an importance looks at."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.progress import track
from torch import Tensor

from gnnrl_lightning.core.checks import require_whole
from gnnrl_lightning.core.samples import Samples


def require_images(images: int | None, batch_size: int, least: int = 1) -> None:
    """Raise UserError unless these settings are whole numbers of at least `least`; `images` may be None, for all."""
    if images is not None:
        require_whole("importance.images", images, least)
    require_whole("importance.batch_size", batch_size, least)


@dataclass
class LooksAtImages:
    """Settings of what looks at training images and trains nothing.

    Args:
        images: Training images to look at, at least 1; None: all.
        batch_size: Images a pass.

    Raises:
        UserError: If a value is out of range.
    """

    images: int | None
    batch_size: int

    def __post_init__(self) -> None:
        require_images(self.images, self.batch_size)


def batches(images: Samples, labels: Tensor, batch_size: int, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The network's input and the classes of all images, batch by batch, with a progress bar."""
    for start in track(range(0, len(labels), batch_size), f"importance: {name}", transient=True):
        rows = slice(start, start + batch_size)
        yield images[rows], labels[rows]
