"""The data set for training and evaluation: annotated images, a transform, and reproducible randomness."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from detrkit.data.annotated_images import AnnotatedImages
from detrkit.data.formats import find_source
from detrkit.data.open import load_source
from detrkit.data.records import WAY_ON, ImageRecord, OnError
from detrkit.data.segments import TASKS
from detrkit.data.transforms import EvalTransform
from detrkit.errors import DataError, did_you_mean
from detrkit.structures import Sample

__all__ = ["DetectionDataset", "SampleTransform", "load_dataset"]

SampleTransform = Callable[[Image.Image, ImageRecord, str], Sample]


class DetectionDataset(AnnotatedImages, Dataset[Sample]):
    """The images of one split with their annotations, as samples for a model.

    ``dataset[i]`` reads image i and returns ``transform(image, records[i], task)``. The randomness of a sample depends
    only on (seed, epoch, i), so neither the number of workers nor resuming within an epoch changes it. With
    ``on_error="skip"`` the next readable image takes the place of an unreadable one, and ``skipped_images`` lists it
    (also when a worker process reads it).

    Args:
        transform: turns an image, its record and a task into a sample; default: the evaluation transform.
        of_images: the attributes of :class:`~detrkit.data.annotated_images.AnnotatedImages`.
    """

    def __init__(self, *, transform: SampleTransform | None = None, **of_images: Any) -> None:
        super().__init__(**of_images)
        self.transform: SampleTransform = transform if transform is not None else EvalTransform()
        # In shared memory: persistent workers must see the current epoch and report the images they skip.
        self._seed_and_epoch = _shared_zeros(2, torch.int64)
        self._unreadable = _shared_zeros(len(self.records), torch.bool)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a data set with {len(self)} images")
        index %= len(self)
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if self._unreadable[candidate]:
                continue
            try:
                return self._sample(candidate, seed_as=index)
            except DataError as error:
                if self.on_error == "raise":
                    raise DataError(
                        f"{error}. Correct it, or {WAY_ON.format('images')}; 'detrkit data check' lists them all"
                    ) from error
                self._unreadable[candidate] = True
        raise DataError(f"{self.name}: none of its {len(self)} images can be read")

    def _sample(self, index: int, *, seed_as: int) -> Sample:
        """Image ``index`` transformed with the randomness of image ``seed_as``, whose place it may take."""
        image = self.read_image(index)
        seed, epoch = (int(value) for value in self._seed_and_epoch)
        with _seeded(seed, epoch, seed_as):
            return self.transform(image, self.records[index], self.task)

    def with_transform(self, transform: SampleTransform, *, task: str | None = None) -> DetectionDataset:
        """The same records with another transform and a separate epoch counter; no annotation is read again.

        task: make the objects of another task, for example boxes alone ("det"); None: of the same.
        """
        other = copy.copy(self)
        other.transform = transform
        other.task = self.task if task is None else task
        other._seed_and_epoch = _shared_zeros(2, torch.int64)
        return other

    def set_epoch(self, seed: int, epoch: int) -> None:
        """Set the randomness of the next epoch; call this before iterating over the loader."""
        self._seed_and_epoch.copy_(torch.tensor([seed, epoch]))

    @property
    def skipped_images(self) -> list[str]:
        """File names of the images that could not be read up to now (``on_error="skip"``)."""
        bad = torch.nonzero(self._unreadable).flatten().tolist()
        return list(dict.fromkeys(self.records[index].file_name for index in bad))

    def _known_records(self) -> list[ImageRecord]:
        """One record per image, without those that could not be read up to now."""
        unreadable = set(torch.nonzero(self._unreadable).flatten().tolist())
        records = {r.image_id: r for index, r in enumerate(self.records) if index not in unreadable}
        return list(records.values())


def load_dataset(
    root: str | Path,
    *,
    split: str = "train",
    task: str = "det",
    format: str = "auto",
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    on_error: OnError = "raise",
    sample_rate: float | None = None,
    sample_repeat: bool = False,
    sample_seed: int = 0,
    repeat: int = 1,
    repeat_threshold: float | None = None,
    max_detections: int | None = None,
) -> DetectionDataset:
    """Load one split of a data folder; images are opened only when samples are requested.

    Args:
        root: the data folder, or its ``data.yaml`` or COCO file.
        split: train, val or test.
        task: det, inst, sem or pan: which annotations become objects, and whether they have masks.
        format: auto, or a key of ``detrkit.data.formats.FORMATS``: coco, yolo, voc, …
        annotations: a COCO file, relative to ``root`` or to the working directory, for unusual layouts.
        images: the image folder of ``annotations``, likewise relative.
        on_error: "raise" an error for bad boxes and images, or "skip" and count them.
        sample_rate: fraction of the images to use. This is the published COCO subset if ``../CocoFormatAnnos`` has its
            file, otherwise a subset chosen by ``sample_seed``; smaller subsets are contained in larger ones.
        sample_repeat: repeat the images int(1 / sample_rate) times, so that an epoch keeps its length.
        sample_seed: the seed of the subset.
        repeat: how many times to list every image, for longer epochs on few images.
        repeat_threshold: repeat images more often if one of their classes occurs in less than this fraction of the
            images, for example 0.001 (``detrkit.data.repeats.repeat_factors``).
        max_detections: detections of an image that AP counts; None: as many as the protocol says.

    Raises:
        DataError: the data cannot be used; the message names the file, key or value.
    """
    if on_error not in ("raise", "skip"):
        raise DataError(f"on_error '{on_error}' is unknown.{did_you_mean(on_error, ['raise', 'skip'])}")
    if task not in TASKS:
        raise DataError(f"task '{task}' is unknown.{did_you_mean(task, TASKS)}")
    root = Path(root)
    source = find_source(
        root,
        split,
        task=task,
        format=format,
        annotations=None if annotations is None else Path(annotations),
        images=None if images is None else Path(images),
    )
    found = load_source(
        source,
        task=task,
        on_error=on_error,
        sample_rate=sample_rate,
        sample_repeat=sample_repeat,
        sample_seed=sample_seed,
        repeat=repeat,
        repeat_threshold=repeat_threshold,
        max_detections=max_detections,
    )
    return DetectionDataset(**{field.name: getattr(found, field.name) for field in fields(found)})


def _shared_zeros(length: int, dtype: torch.dtype) -> Tensor:
    zeros: Tensor = torch.zeros(length, dtype=dtype).share_memory_()
    return zeros


@contextmanager
def _seeded(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Seed the generators of torch, random and numpy for a transform, and restore their states afterwards."""
    seeds = np.random.SeedSequence([seed & 0xFFFFFFFF, epoch, index]).generate_state(2, np.uint64)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    # torch.manual_seed would also reseed the accelerators of the training process
    torch.default_generator.manual_seed(int(seeds[0] >> np.uint64(1)))
    random.seed(int(seeds[1]))
    np.random.seed(int(seeds[1] & np.uint64(0xFFFFFFFF)))
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
