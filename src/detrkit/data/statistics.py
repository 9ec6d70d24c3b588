"""Statistics of a split: classes, boxes per image, sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from detrkit.data.annotated_images import AnnotatedImages
from detrkit.data.coco_json import Row
from detrkit.data.segments import Segments, clipped

__all__ = ["PERCENTILES", "ClassCount", "Statistics", "statistics"]

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """The counts of one class."""

    id: int
    """The category id in the files."""
    name: str
    boxes: int
    images: int
    """Images with at least one box of the class."""
    small: float | None
    """25th percentile of box size / shorter side of the image, box size being sqrt(width x height); None without
    boxes."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The statistics of one split. Tuples of percentiles are at ``PERCENTILES``, and None without values."""

    images: int
    empty_images: int
    """Images without objects."""
    boxes: int
    """Boxes without crowd regions."""
    crowd: int
    left_out: int
    """Rows and images that loading left out."""
    classes: tuple[ClassCount, ...]
    boxes_per_image: tuple[float, ...] | None
    """Percentiles."""
    box_sizes: tuple[float, ...] | None
    """Percentiles of sqrt(width x height) in pixels."""
    box_sizes_relative: tuple[float, ...] | None
    """Percentiles of the box size divided by the square root of the image area."""
    box_aspects: tuple[float, ...] | None
    """Percentiles of width / height."""
    coco_sizes: tuple[int, int, int]
    """Boxes with an area below 32², from 32² to 96², and from 96²."""
    image_sizes: tuple[tuple[int, int, int], ...]
    """(width, height, count), most frequent first."""

    def to_json(self) -> Row:
        """As plain dictionaries and tuples."""
        return asdict(self)


def statistics(dataset: AnnotatedImages) -> Statistics:
    """Compute the statistics of a split from its records; no image is opened."""
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
                small=_lower_quartile((sizes / short_sides)[labels == label]),
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


def _lower_quartile(values: NDArray[np.float64] | NDArray[np.int64]) -> float | None:
    return round(float(np.percentile(values, 25)), 4) if len(values) else None
