"""Average precision of instances as the Cityscapes benchmark counts it (cityscapesScripts, instance level).

It differs from COCO's: objects of less than 100 pixels, groups of objects and void regions are ignored; every true
object takes its best detection, wherever it stands in the ranking; the precision is not made monotone; and any number
of detections counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from detrkit.data.gtfine_files import CITYSCAPES_CATEGORIES, LABEL_CLASSES, PER_LABEL, labels_of, read_instance_ids
from detrkit.errors import DataError
from detrkit.metrics.cityscapes_files import listed_masks, matching_results, read_mask
from detrkit.metrics.protocol import AnnotatedData, PerImageMetric
from detrkit.metrics.score import Numbers, Score
from detrkit.side_by_side import in_threads
from detrkit.structures import Detections

__all__ = ["CLASSES", "CityscapesData", "CityscapesMetric", "Scored", "match_image", "score_cityscapes"]

CLASSES: Mapping[int, str] = {one.label: one.name for one in LABEL_CLASSES if one.name in CITYSCAPES_CATEGORIES}
"""The classes that count, in the published order, by label id."""

OVERLAPS = np.arange(10, 20) / 20
"""IoU that a match must exceed: 0.5, 0.55 … 0.95."""

_SMALLEST = 100  # pixels of an object that counts
# Raw values of ignored regions; single caravans and trailers (29xxx, 30xxx) are none of them, as in the official code.
_VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """A detection: its pixels (H, W), label id and score."""

    mask: Mask
    label: int
    score: float


@dataclass(frozen=True)
class ClassMatches:
    """Detections P and true objects G of one class in one image.

    Attributes:
        iou: (G, P), of the true objects with the detections.
        counted: (G,), whether an object is neither a group nor too small.
        scores: (P,).
        ignored: (P,), share of a detection that lies on void, groups or small objects of its class.
    """

    iou: NDArray[np.float64]
    counted: NDArray[np.bool_]
    scores: NDArray[np.float64]
    ignored: NDArray[np.float64]


def match_image(instance_ids: NDArray[np.int32], found: Iterable[Scored]) -> dict[int, ClassMatches]:
    """What the score needs of one image, by label id.

    Args:
        instance_ids: (H, W), values of ``*_gtFine_instanceIds.png``.
        found: the detections; those of other classes and without a pixel are left out.
    """
    areas = np.bincount(instance_ids.reshape(-1))
    values = np.flatnonzero(areas)
    label_of = labels_of(values)
    rows: dict[int, list[tuple[NDArray[np.int64], float]]] = {label: [] for label in CLASSES}
    for one in found:
        if one.label in rows and one.mask.any():
            rows[one.label].append((np.bincount(instance_ids[one.mask], minlength=len(areas)), one.score))
    matches = {}
    for label, detections in rows.items():
        own = values[label_of == label]
        single = own >= PER_LABEL
        small = areas[own] < _SMALLEST
        pixels = np.array([counts for counts, _ in detections], dtype=np.int64).reshape(-1, len(areas))
        size, inside = pixels.sum(axis=1), pixels[:, own]
        # a small group is in both sums, as in the official code
        void = pixels[:, [value for value in _VOID if value < len(areas)]].sum(axis=1)
        ignored = void + inside[:, ~single].sum(axis=1) + inside[:, small].sum(axis=1)
        matches[label] = ClassMatches(
            iou=(inside / (areas[own][None] + size[:, None] - inside)).T,
            counted=single & ~small,
            scores=np.array([score for _, score in detections], dtype=np.float64),
            ignored=ignored / size,
        )
    return matches


@runtime_checkable
class CityscapesData(AnnotatedData, Protocol):
    """What this protocol takes from a data set."""

    def instance_ids(self, image_id: int) -> NDArray[np.int32]:
        """Values (H, W) of the label image of instances."""


class CityscapesMetric(PerImageMetric[Detections, dict[int, ClassMatches]]):
    """AP and AP50 of masks. Ground truth is read when its image is met.

    Args:
        data: gives the ground truth of an image id.
    """

    protocol = "cityscapes"
    headline = ("AP", "AP50")
    class_columns = ("AP", "AP50")

    def __init__(self, data: CityscapesData) -> None:
        super().__init__()
        self._data = data

    @classmethod
    def of(cls, data: AnnotatedData) -> Self:
        """AP on these data."""
        if not isinstance(data, CityscapesData):
            raise DataError("the data have no label images of instances (*_gtFine_instanceIds.png)")
        return cls(data)

    def extract(self, image_id: int, result: Detections) -> dict[int, ClassMatches]:
        """The matches of every class.

        Raises:
            ValueError: the detections have no masks.
        """
        if result.masks is None:
            raise ValueError(f"image {image_id}: detections without masks")
        label_of = {name: label for label, name in CLASSES.items()}
        labels = (label_of.get(name, -1) for name in result.names)
        found = zip(result.masks, labels, result.scores.tolist(), strict=True)
        return match_image(self._data.instance_ids(image_id), (Scored(*one) for one in found))

    def compute(self) -> Score:
        """The score of all images since the last reset."""
        return _score(self.extracts.values())


def _score(images: Iterable[Mapping[int, ClassMatches]]) -> Score:
    """AP and AP50 of all images, over the classes that have objects, and of each class."""
    per_image = list(images)
    table = {
        name: [_average_precision([matches[label] for matches in per_image], overlap) for overlap in OVERLAPS]
        for label, name in CLASSES.items()
    }
    per_class: dict[str, Numbers] = {
        name: {"AP": None if row[0] is None else float(np.mean([value or 0.0 for value in row])), "AP50": row[0]}
        for name, row in table.items()
    }
    defined = [numbers for numbers in per_class.values() if numbers["AP50"] is not None]
    metrics = {
        name: float(np.mean([numbers[name] or 0.0 for numbers in defined])) if defined else None
        for name in ("AP", "AP50")
    }
    return Score(CityscapesMetric.protocol, "segm", metrics, per_class, CityscapesMetric.headline)


def _average_precision(images: Sequence[ClassMatches], overlap: float) -> float | None:
    """AP of one class at one overlap; None without a true object that counts."""
    right: list[float] = []
    wrong: list[float] = []
    objects = sum(int(image.counted.sum()) for image in images)
    if not objects:
        return None
    for image in images:
        hits = image.iou > overlap
        for row in hits[image.counted]:
            scores = sorted(image.scores[row], reverse=True)
            right += scores[:1]
            wrong += scores[1:]
        wrong += image.scores[~hits.any(axis=0) & (image.ignored <= overlap)].tolist()
    if not right:
        return 0.0
    thresholds = np.unique([*right, *wrong])  # ascending: the recall falls
    true, all_scores = np.sort(right), np.sort([*right, *wrong])
    true_above = len(true) - np.searchsorted(true, thresholds)
    above = len(all_scores) - np.searchsorted(all_scores, thresholds)
    precision = np.append(true_above / above, 1.0)
    recall = np.append(true_above / objects, 0.0)
    # the area under the points joined by straight lines; its outermost widths are half as wide
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float(np.sum(precision * (around[:-2] - around[2:]) / 2))


def score_cityscapes(ground_truth: str | Path, results: str | Path) -> Score:
    """AP of instances by the rules of the Cityscapes benchmark: ``AP``, ``AP50``, and both for each of eight classes.

    Args:
        ground_truth: ``gtFine``, one of its splits (of several: val), or the folder that holds ``gtFine``.
        results: the folder with one text file per image, ``<city>_<sequence>_<frame>*.txt``. Its lines are the path of
            a mask relative to the file, the label id (a car is 26) and the score; a mask is an image whose pixels
            differ from 0 on the object.

    Raises:
        DataError: a file is missing or is not what it should be; the message names file and line.
    """
    root = Path(results)

    def match(pair: tuple[Path, Path]) -> dict[int, ClassMatches]:
        truth = read_instance_ids(pair[0])
        listed = [line for line in listed_masks(pair[1], root) if line.label in CLASSES]
        found = (Scored(read_mask(line.mask, truth.shape), line.label, line.score) for line in listed)
        return match_image(truth, found)

    return _score(in_threads(match, matching_results(Path(ground_truth), root, ".txt").items()))
