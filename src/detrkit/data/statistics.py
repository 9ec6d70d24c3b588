"""Numbers that describe a split: classes, boxes per image, sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from detrkit.data.annotations import Segments, clipped
from detrkit.data.coco_json import Row
from detrkit.data.dataset import DetectionDataset

__all__ = ["PERCENTILES", "ClassCount", "Statistics", "statistics"]

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """One class: its id in the files, its name, its boxes, and the images that have any of them.

    small: a quarter of its boxes are smaller than this part of their image's shorter side (None without boxes).
    """

    id: int
    name: str
    boxes: int
    images: int
    small: float | None


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """One split.

    Percentiles are at 0, 5, 25, 50, 75, 95 and 100 % (None without boxes): boxes_per_image · box_sizes: square root
    of width × height in pixels · box_sizes_relative: the same over the square root of the image's area · box_aspects:
    width / height. coco_sizes: boxes below 32², below 96² and above, by area. image_sizes: (width, height, how many),
    most frequent first.
    """

    images: int
    empty_images: int
    boxes: int
    crowd: int
    left_out: int
    classes: tuple[ClassCount, ...]
    boxes_per_image: tuple[float, ...] | None
    box_sizes: tuple[float, ...] | None
    box_sizes_relative: tuple[float, ...] | None
    box_aspects: tuple[float, ...] | None
    coco_sizes: tuple[int, int, int]
    image_sizes: tuple[tuple[int, int, int], ...]

    def to_json(self) -> Row:
        """Plain lists and tables."""
        return asdict(self)


def statistics(dataset: DetectionDataset) -> Statistics:
    """Describe a split from its records; no image is opened. Crowd is counted apart from boxes."""
    records = dataset.records
    segments = Segments.cat([record.segments for record in records])
    owner = np.repeat(np.arange(len(records)), [len(record.segments) for record in records])[segments.single]
    objects = segments[segments.single]
    labels, areas = objects.labels, objects.areas
    image_sizes = np.asarray([(record.width, record.height) for record in records])
    boxes = clipped(objects.boxes, image_sizes[owner])
    counts = np.bincount(owner, minlength=len(records))
    image_areas, short_sides = image_sizes.prod(axis=1)[owner], image_sizes.min(axis=1)[owner]
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    sizes = np.sqrt(width * height)
    per_class = np.bincount(labels, minlength=len(dataset.categories))
    images_of = Counter(label for record in records for label in np.unique(record.labels).tolist())
    return Statistics(
        images=len(records),
        empty_images=int((counts == 0).sum()),
        boxes=len(boxes),
        crowd=int((segments.crowd & ~segments.outside).sum()),
        left_out=len(dataset.load_errors),
        classes=tuple(
            ClassCount(
                id=c.id,
                name=str(c.name),
                boxes=int(per_class[label]),
                images=images_of[label],
                small=_quarter((sizes / short_sides)[labels == label]),
            )
            for label, c in enumerate(dataset.categories)
        ),
        boxes_per_image=_percentiles(counts),
        box_sizes=_percentiles(sizes),
        box_sizes_relative=_percentiles(sizes / np.sqrt(image_areas)),
        box_aspects=_percentiles(width / height),
        coco_sizes=(
            int((areas < 32**2).sum()),
            int(((areas >= 32**2) & (areas < 96**2)).sum()),
            int((areas >= 96**2).sum()),
        ),
        image_sizes=tuple(
            (*size, number) for size, number in Counter((r.width, r.height) for r in records).most_common()
        ),
    )


def _percentiles(values: NDArray[np.float64] | NDArray[np.int64]) -> tuple[float, ...] | None:
    return tuple(round(float(v), 4) for v in np.percentile(values, PERCENTILES)) if len(values) else None


def _quarter(values: NDArray[np.float64] | NDArray[np.int64]) -> float | None:
    return round(float(np.percentile(values, 25)), 4) if len(values) else None
