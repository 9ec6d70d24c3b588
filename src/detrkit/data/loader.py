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
from detrkit.structures import Batch, Sample, pad_images, pad_masks

__all__ = ["build_loader", "collate"]


def collate(samples: Sequence[Sample], *, size_divisor: int = 1) -> Batch:
    """Pad images and masks at the right and bottom to the maximum size of the batch, rounded up to ``size_divisor``."""
    images, padding_mask = pad_images([sample.image for sample in samples], size_divisor)
    return Batch(images, padding_mask, [pad_masks(sample.target, images) for sample in samples])


def build_loader(
    dataset: DetectionDataset, batch_sampler: Iterable[list[int]], *, workers: int = 0, size_divisor: int = 1
) -> DataLoader[Batch]:
    """A loader of ``Batch`` with persistent workers; it does not use the global random generators.

    Raises:
        DataError: during iteration, also if a worker process fails to read an image.
    """
    return _Loader(
        _ErrorsAsValues(dataset),
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=functools.partial(_collate, size_divisor=size_divisor),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_ignore_interrupts,
    )


class _ErrorsAsValues(Dataset[Sample | DataError]):
    """Returns errors as values: torch would add the traceback of the worker to an exception raised there."""

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
    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # callers only need an iterator
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C reaches all processes of the group, and every worker would print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
