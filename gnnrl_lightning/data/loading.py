"""Loaders of one split, which fetch a batch at a time."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from gnnrl_lightning.core.samples import Preprocessing
from gnnrl_lightning.data.images import ImageSet

Batch = tuple[Tensor, Tensor]


class SplitDataset(Dataset[Batch]):
    """One split, fetched a batch at a time: images float32 [B, 3, S, S] and labels int64 [B].

    With a `generator` the images are augmented, drawing from it.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        flip: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.images = images
        self.preprocessing = preprocessing
        self.flip = flip
        self.generator = generator

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getstate__(self) -> dict[str, Any]:
        # Torch cannot send a generator to a process that is spawned, not forked; each worker seeds its own anyway.
        return self.__dict__ | {"generator": None if self.generator is None else self.generator.initial_seed()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        seed = state["generator"]
        self.__dict__.update(state, generator=None if seed is None else torch.Generator().manual_seed(seed))

    def __getitem__(self, row: int) -> Batch:
        images, labels = self.__getitems__([row])
        return images[0], labels[0]

    def __getitems__(self, rows: list[int]) -> Batch:
        """Fetch a whole batch; the loader calls this in place of `__getitem__`."""
        if self.generator is None:
            pixels = self.images.evaluation(rows)
        else:
            pixels = self.images.augmented(rows, self.flip, self.generator)
        return self.preprocessing.normalise(pixels), self.images.labels[rows]


def shuffled(dataset: SplitDataset, batch_size: int, workers: int) -> DataLoader[Batch]:
    """Augmented and shuffled images of a dataset with a generator."""
    return loader(
        dataset,
        workers,
        batch_size=batch_size,
        shuffle=True,
        generator=dataset.generator,
        worker_init_fn=_seed_worker,
        # Batch normalisation cannot train on a last batch of one image.
        drop_last=len(dataset) >= batch_size,
    )


def loader(dataset: SplitDataset, workers: int, **options: Any) -> DataLoader[Batch]:
    """A loader of a dataset with so many processes, 0 for none."""
    return DataLoader(
        dataset, collate_fn=_as_fetched, num_workers=workers, pin_memory=torch.cuda.is_available(), **options
    )


def _as_fetched(batch: Any) -> Any:
    return batch


def _seed_worker(worker_id: int) -> None:
    """Give each loader process its own stream: its seed is drawn from the loader's generator at every epoch."""
    worker = get_worker_info()
    assert worker is not None and isinstance(worker.dataset, SplitDataset)
    assert worker.dataset.generator is not None
    worker.dataset.generator.manual_seed(worker.seed)
