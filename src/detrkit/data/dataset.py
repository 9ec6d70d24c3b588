"""The data set that training and evaluation read: records, a transform, and randomness that depends on nothing else."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from detrkit.data.coco_json import Row
from detrkit.data.images import read_image
from detrkit.data.records import ImageRecord, OnError, ScoreProtocol
from detrkit.data.transforms import EvalTransform
from detrkit.errors import DataError
from detrkit.structures import NEGATIVES, NOT_EXHAUSTIVE, Categories, Sample

__all__ = ["DetectionDataset", "SampleTransform"]

SampleTransform = Callable[[Image.Image, ImageRecord], Sample]


class DetectionDataset(Dataset[Sample]):
    """Images with boxes of one split.

    ``dataset[i]`` reads image i and returns ``transform(image, records[i])``. All randomness of a sample comes from
    (seed, epoch, i), so neither the number of workers nor resuming in mid-epoch changes it.

    Args:
        records: sorted by image id.
        categories: in label order.
        name: for folders and tables.
        transform: makes a sample of an image and its record; by default that of evaluation.
        on_error: what an unreadable image does: "raise", or "skip": the next readable image takes its place, and
            ``skipped_images`` names it (also when workers read it).
        load_errors: a line for everything that was left out while loading.
        protocol: how results on these images are scored.
        frequencies: of the classes, in label order: "r", "c" or "f" (LVIS), or None.
        chances: how likely an epoch has each record, None when it has all (see ``detrkit.data.samplers``).
    """

    def __init__(
        self,
        *,
        records: Sequence[ImageRecord],
        categories: Categories,
        name: str = "dataset",
        transform: SampleTransform | None = None,
        on_error: OnError = "raise",
        load_errors: Sequence[str] = (),
        protocol: ScoreProtocol = "coco",
        frequencies: Sequence[str] | None = None,
        chances: NDArray[np.float64] | None = None,
    ) -> None:
        self.records = list(records)
        self.categories = categories
        self.name = name
        self.transform: SampleTransform = transform if transform is not None else EvalTransform()
        self.on_error = on_error
        self.load_errors = list(load_errors)
        self.protocol: ScoreProtocol = protocol
        self.frequencies = frequencies
        self.chances = chances
        # In shared memory, so that workers that live through many epochs see the epoch and report what they skip.
        self._clock = _shared_zeros(2, torch.int64)
        self._unreadable = _shared_zeros(len(self.records), torch.bool)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a data set with {len(self)} images")
        index %= len(self)
        image, record = self._readable(index)
        seed, epoch = (int(value) for value in self._clock)
        with _seeded(seed, epoch, index):
            return self.transform(image, record)

    def read_image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB in the frame of its boxes, before any transform.

        Raises:
            DataError: missing, damaged, or of another size than the annotations say.
        """
        record = self.records[index]
        return read_image(record.path, frame=(record.width, record.height))

    def with_transform(self, transform: SampleTransform) -> DetectionDataset:
        """The same records with another transform and an epoch of its own; nothing is read again."""
        other = copy.copy(self)
        other.transform = transform
        other._clock = _shared_zeros(2, torch.int64)
        return other

    def set_epoch(self, seed: int, epoch: int) -> None:
        """Choose the randomness of the coming epoch; call it before the loader is iterated."""
        self._clock.copy_(torch.tensor([seed, epoch]))

    @property
    def aspect_ratios(self) -> list[float]:
        """Width / height of every image, for batching like with like."""
        return [record.width / record.height for record in self.records]

    @property
    def skipped_images(self) -> list[str]:
        """File names of the images that could not be read so far (``on_error="skip"``)."""
        bad = torch.nonzero(self._unreadable).flatten().tolist()
        return list(dict.fromkeys(self.records[index].file_name for index in bad))

    def coco_ground_truth(self) -> Row:
        """The ground truth as COCO JSON with the files' own category ids; crowd regions carry ``iscrowd`` 1.

        Boxes and areas are the file's, also where they pass the image's border, and so is what LVIS adds to images and
        categories. Images that turned out unreadable so far and boxes that loading left out are absent.
        """
        unreadable = set(torch.nonzero(self._unreadable).flatten().tolist())
        records = {r.image_id: r for index, r in enumerate(self.records) if index not in unreadable}.values()
        ids = self.categories.ids
        rows = (row for record in records for row in _annotations(record, ids))
        categories: list[Row] = [dict(row) for row in self.categories.to_json()]
        if self.frequencies is not None:
            for category, frequency in zip(categories, self.frequencies, strict=True):
                category["frequency"] = frequency
        return {
            "info": {"description": self.name},
            "images": [_image(record, ids) for record in records],
            "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
            "categories": categories,
        }

    def _readable(self, index: int) -> tuple[Image.Image, ImageRecord]:
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            if self._unreadable[candidate]:
                continue
            try:
                return self.read_image(candidate), self.records[candidate]
            except DataError as error:
                if self.on_error == "raise":
                    raise DataError(
                        f"{error}. Set on_error to skip to leave such images out and count them; "
                        "'detrkit data check' lists them all"
                    ) from error
                self._unreadable[candidate] = True
        raise DataError(f"{self.name}: none of its {len(self)} images can be read")


def _shared_zeros(length: int, dtype: torch.dtype) -> Tensor:
    zeros: Tensor = torch.zeros(length, dtype=dtype).share_memory_()
    return zeros


def _image(record: ImageRecord, category_ids: list[int]) -> Row:
    image = {"id": record.image_id, "file_name": record.file_name, "width": record.width, "height": record.height}
    lists = {NEGATIVES: record.negatives, NOT_EXHAUSTIVE: record.not_exhaustive}
    known = {key: [category_ids[label] for label in labels] for key, labels in lists.items() if labels is not None}
    return {**image, **known}


def _annotations(record: ImageRecord, category_ids: list[int]) -> Iterator[Row]:
    segments = record.segments
    columns = (segments.boxes, segments.labels, segments.areas, segments.crowd)
    for box, label, area, crowd in zip(*(column.tolist() for column in columns), strict=True):
        row = {"image_id": record.image_id, "category_id": category_ids[label], "bbox": box}
        yield {**row, "area": area, "iscrowd": int(crowd)}


@contextmanager
def _seeded(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Seed every generator a transform may draw from, and leave all of them as they were afterwards."""
    words = np.random.SeedSequence([seed & 0xFFFFFFFF, epoch, index]).generate_state(2, np.uint64)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    # not torch.manual_seed: that would reseed the accelerators of the training process too
    torch.default_generator.manual_seed(int(words[0] >> np.uint64(1)))
    random.seed(int(words[1]))
    np.random.seed(int(words[1] & np.uint64(0xFFFFFFFF)))
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
