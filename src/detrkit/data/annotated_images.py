"""The annotated images of one split, without what training needs. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.data.coco_json import Row
from detrkit.data.ground_truth import annotation_rows, image_row, panoptic_truth, semantic_map
from detrkit.data.gtfine_files import read_instance_ids
from detrkit.data.images import read_image
from detrkit.data.records import ImageRecord, OnError, ScoreProtocol
from detrkit.data.segments import rules_of
from detrkit.errors import DataError
from detrkit.structures import Categories, SemanticMap

__all__ = ["AnnotatedImages"]


@dataclass(kw_only=True, eq=False)
class AnnotatedImages:
    """The images of one split with their annotations.

    Attributes:
        records: sorted by image id.
        categories: in label order.
        name: the name in folders and tables.
        task: what the records were read for: det, inst, sem or pan; objects have masks except for det.
        on_error: what to do with an unreadable image: "raise" an error, or "skip" it: the next readable image takes
            its place, and ``skipped_images`` lists it (also when a worker process reads it).
        load_errors: one line per box or image that was left out while loading.
        protocol: how results on these images are scored.
        max_detections: detections of an image that AP counts; None: as many as the protocol says.
        frequencies: frequency of each class in label order: "r", "c" or "f" (LVIS), or None.
        chances: probability that an epoch contains each record; None: every epoch contains all records (see
            ``detrkit.data.samplers``).
    """

    records: Sequence[ImageRecord]
    categories: Categories
    name: str = "dataset"
    task: str = "det"
    on_error: OnError = "raise"
    load_errors: Sequence[str] = ()
    protocol: ScoreProtocol = "coco"
    max_detections: int | None = None
    frequencies: Sequence[str] | None = None
    chances: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        self.records, self.load_errors = list(self.records), list(self.load_errors)

    def __len__(self) -> int:
        return len(self.records)

    def read_image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB before any transform, in the orientation of its annotations.

        Raises:
            DataError: the image is missing, damaged, or its size differs from the annotations.
        """
        record = self.records[index]
        return read_image(record.path, frame=(record.width, record.height))

    @property
    def aspect_ratios(self) -> list[float]:
        """Width / height of every image, for batches of similar shapes."""
        return [record.width / record.height for record in self.records]

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

    def unique_records(self) -> list[ImageRecord]:
        """One record per image; in training an image may occur several times."""
        return list({record.image_id: record for record in self.records}.values())

    def _known_records(self) -> list[ImageRecord]:
        """The images that count in an evaluation."""
        return self.unique_records()
