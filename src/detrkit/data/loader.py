"""From samples to padded batches."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Sampler

from detrkit.data.dataset import DetectionDataset
from detrkit.structures import Batch, Sample, pad_images

__all__ = ["build_loader", "collate"]


def collate(samples: Sequence[Sample], *, size_divisor: int = 1) -> Batch:
    """One batch: images padded at the right and bottom to their common maximum (times ``size_divisor``)."""
    images, mask = pad_images([sample.image for sample in samples], size_divisor)
    return Batch(images, mask, [sample.target for sample in samples])


def build_loader(
    dataset: DetectionDataset, batch_sampler: Sampler[list[int]], *, workers: int = 0, size_divisor: int = 1
) -> DataLoader[Batch]:
    """A loader of ``Batch``; its workers live as long as it does, and it draws nothing from the global generators."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # the collate function turns samples into batches
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=functools.partial(collate, size_divisor=size_divisor),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
    )
