"""The data set for training and evaluation: records, a transform, and reproducible randomness."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from detrkit.data.coco_json import Row
from detrkit.data.ground_truth import annotation_rows, image_row, panoptic_truth, semantic_map
from detrkit.data.gtfine_files import read_instance_ids
from detrkit.data.images import read_image
from detrkit.data.records import WAY_ON, ImageRecord, OnError, ScoreProtocol
from detrkit.data.segments import rules_of
from detrkit.data.transforms import EvalTransform
from detrkit.errors import DataError
from detrkit.structures import Categories, Sample, SemanticMap

__all__ = ["DetectionDataset", "SampleTransform"]

SampleTransform = Callable[[Image.Image, ImageRecord, str], Sample]


class DetectionDataset(Dataset[Sample]):
    """The images of one split with their annotations.

    ``dataset[i]`` reads image i and returns ``transform(image, records[i], task)``. The randomness of a sample depends
    only on (seed, epoch, i), so neither the number of workers nor resuming within an epoch changes it.

    Args:
        records: sorted by image id.
        categories: in label order.
        name: the name in folders and tables.
        task: what the records were read for: det, inst, sem or pan; objects have masks except for det.
        transform: turns an image, its record and a task into a sample; default: the evaluation transform.
        on_error: what to do with an unreadable image: "raise" an error, or "skip" it: the next readable image takes
            its place, and ``skipped_images`` lists it (also when a worker process reads it).
        load_errors: one line per box or image that was left out while loading.
        protocol: how results on these images are scored.
        max_detections: detections of an image that AP counts; None: as many as the protocol says.
        frequencies: frequency of each class in label order: "r", "c" or "f" (LVIS), or None.
        chances: probability that an epoch contains each record; None: every epoch contains all records (see
            ``detrkit.data.samplers``).
    """

    def __init__(
        self,
        *,
        records: Sequence[ImageRecord],
        categories: Categories,
        name: str = "dataset",
        task: str = "det",
        transform: SampleTransform | None = None,
        on_error: OnError = "raise",
        load_errors: Sequence[str] = (),
        protocol: ScoreProtocol = "coco",
        max_detections: int | None = None,
        frequencies: Sequence[str] | None = None,
        chances: NDArray[np.float64] | None = None,
    ) -> None:
        self.records = list(records)
        self.categories = categories
        self.name = name
        self.task = task
        self.transform: SampleTransform = transform if transform is not None else EvalTransform()
        self.on_error = on_error
        self.load_errors = list(load_errors)
        self.protocol: ScoreProtocol = protocol
        self.max_detections = max_detections
        self.frequencies = frequencies
        self.chances = chances
        # In shared memory: persistent workers must see the current epoch and report the images they skip.
        self._seed_and_epoch = _shared_zeros(2, torch.int64)
        self._unreadable = _shared_zeros(len(self.records), torch.bool)

    def __len__(self) -> int:
        return len(self.records)

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

    def read_image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB before any transform, in the orientation of its annotations.

        Raises:
            DataError: the image is missing, damaged, or its size differs from the annotations.
        """
        record = self.records[index]
        return read_image(record.path, frame=(record.width, record.height))

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
    def aspect_ratios(self) -> list[float]:
        """Width / height of every image, for batches of similar shapes."""
        return [record.width / record.height for record in self.records]

    @property
    def skipped_images(self) -> list[str]:
        """File names of the images that could not be read up to now (``on_error="skip"``)."""
        bad = torch.nonzero(self._unreadable).flatten().tolist()
        return list(dict.fromkeys(self.records[index].file_name for index in bad))

    @property
    def iou_type(self) -> Literal["bbox", "segm"]:
        """Whether its objects are matched by boxes or by masks."""
        return "segm" if rules_of(self.task).masks else "bbox"

    def coco_ground_truth(self) -> Row:
        """The ground truth as COCO JSON with the category ids of the file; crowd regions have ``iscrowd`` 1.

        Boxes and areas are those of the file, not clipped to the image; LVIS fields are kept. With a task that has
        masks, every annotation also has its ``segmentation`` as compressed RLE. Images that could not be read up to now
        and annotations that were left out while loading are missing.
        """
        records, ids = self._known_records(), self.categories.ids
        rows = (row for record in records for row in annotation_rows(record, ids))
        categories: list[Row] = [dict(row) for row in self.categories.to_json()]
        if self.frequencies is not None:
            for category, frequency in zip(categories, self.frequencies, strict=True):
                category["frequency"] = frequency
        return {
            "info": {"description": self.name},
            "images": [image_row(record, ids) for record in records],
            "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
            "categories": categories,
        }

    def panoptic_ground_truth(self) -> tuple[Row, Callable[[str], NDArray[np.int32]]]:
        """COCO panoptic content, and what gives the segment ids (H, W) of a PNG file that it names.

        The pixels of an image are made when they are asked for. Without stuff in the data the segments are things.
        """
        return panoptic_truth(self._known_records(), self.categories)

    def semantic_ground_truth(self) -> tuple[Categories, Callable[[int], SemanticMap]]:
        """The classes, and what gives the class map of an image id, made when it is asked for."""
        records = {record.image_id: record for record in self._known_records()}
        return self.categories, lambda image_id: semantic_map(records[image_id], self.categories)

    def instance_ids(self, image_id: int) -> NDArray[np.int32]:
        """Values (H, W) of Cityscapes' label image of instances of an image.

        Raises:
            DataError: the images have no such files, or it cannot be read.
        """
        record = next((record for record in self.records if record.image_id == image_id), None)
        if record is None or record.map_file is None:
            raise DataError(f"{self.name}: image {image_id} has no label image of instances")
        return read_instance_ids(record.map_file.path)

    def _known_records(self) -> list[ImageRecord]:
        """One record per image, without those that could not be read up to now."""
        unreadable = set(torch.nonzero(self._unreadable).flatten().tolist())
        records = {r.image_id: r for index, r in enumerate(self.records) if index not in unreadable}
        return list(records.values())


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
