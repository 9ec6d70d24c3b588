"""From samples to padded batches."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from detrkit.data.dataset import DetectionDataset
from detrkit.errors import DataError
from detrkit.structures import Batch, Sample, pad_images

__all__ = ["build_loader", "collate"]


def collate(samples: Sequence[Sample], *, size_divisor: int = 1) -> Batch:
    """One batch: images padded at the right and bottom to their common maximum (times ``size_divisor``)."""
    images, mask = pad_images([sample.image for sample in samples], size_divisor)
    return Batch(images, mask, [sample.target for sample in samples])


def build_loader(
    dataset: DetectionDataset, batch_sampler: Iterable[list[int]], *, workers: int = 0, size_divisor: int = 1
) -> DataLoader[Batch]:
    """A loader of ``Batch``; its workers live as long as it does, and it draws nothing from the global generators.

    Raises:
        DataError: on iterating, as the data set raises it, from workers too.
    """
    return _Loader(
        _Guarded(dataset),
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=functools.partial(_collate, size_divisor=size_divisor),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_leave_interrupts_to_the_parent,
    )


# Errors travel as values: raised in a worker, torch would wrap them in that worker's traceback.
class _Guarded(Dataset[Sample | DataError]):
    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | DataError:
        try:
            return self.dataset[index]
        except DataError as error:
            return error


def _collate(samples: Sequence[Sample | DataError], *, size_divisor: int) -> Batch | DataError:
    good = [sample for sample in samples if isinstance(sample, Sample)]
    errors = [sample for sample in samples if isinstance(sample, DataError)]
    return errors[0] if errors else collate(good, size_divisor=size_divisor)


class _Loader(DataLoader[Any]):
    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator is all that callers need
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch


def _leave_interrupts_to_the_parent(_: int) -> None:
    """Ctrl-C reaches the whole process group; workers would answer it with a traceback each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
