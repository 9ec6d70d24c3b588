"""Panoptic quality (Kirillov et al., Panoptic Segmentation) as panopticapi counts it.

A found segment matches one of the ground truth when both are of one class and their IoU is above 0.5, which at most one
pair can be since segments do not overlap. Pixels that the ground truth leaves void count for nobody, and neither do
segments that lie mainly on void pixels or on a crowd of their class.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from detrkit.errors import DataError
from detrkit.metrics.cityscapes_maps import cityscapes_panoptic_truth
from detrkit.metrics.panoptic_files import (
    ListedSegment,
    ReadIds,
    SegmentFile,
    read_panoptic_results,
    read_panoptic_truth,
)
from detrkit.metrics.protocol import AnnotatedData, PerImageMetric
from detrkit.metrics.score import Numbers, NumbersJson, Score
from detrkit.side_by_side import in_threads
from detrkit.structures import Categories, PanopticMap
from detrkit.structures.segment_maps import MAX_ID, id_mismatch

__all__ = ["PanopticData", "PanopticMetric", "PanopticScore", "score_panoptic"]

FloatArray = NDArray[np.float64]

_NAMES = ("PQ", "SQ", "RQ")
_GROUPS = {"All": "", "Things": "_things", "Stuff": "_stuff"}
"""The groups of classes, and what is added to the names of their numbers."""
_IOU, _HIT, _FALSE, _MISSED = range(4)
"""What is counted of each class: the sum of IoUs, matches, found segments and true segments without a match."""


class _Counts(NamedTuple):
    """What is kept of an image."""

    segments: FloatArray
    """A row for each class that occurs: label, then sum of IoUs, matches, false and missed segments."""

    pixels: NDArray[np.int64]
    """(N, 3): class as labelled, class as found (as many as there are classes: none), number of pixels."""


@runtime_checkable
class PanopticData(AnnotatedData, Protocol):
    """What this protocol takes from a data set."""

    def panoptic_ground_truth(self) -> tuple[Mapping[str, object], Path | ReadIds]:
        """The content of a COCO panoptic JSON file with the data set's own ids, and the folder of its PNG files.

        In place of the folder: a function that gives the segment ids (H, W) of a ``file_name``.
        """


@dataclass(frozen=True)
class PanopticScore(Score):
    """Panoptic quality of all classes, of things and of stuff.

    Attributes:
        num_classes: how many classes each of these is the mean of.
    """

    num_classes: Mapping[str, int]

    def metrics_json(self) -> NumbersJson:
        """One object for each group of classes."""
        return {
            group: {name: self.metrics[name + suffix] for name in _NAMES} | {"n": self.num_classes[group]}
            for group, suffix in _GROUPS.items()
        }


class PanopticMetric(PerImageMetric[PanopticMap, _Counts]):
    """Panoptic quality, segmentation quality and recognition quality.

    Of each image it keeps the counts of the classes that occur there. Ground truth is read when its image is met.

    Args:
        ground_truth: COCO panoptic JSON as a file or its content.
        images: the folder of its PNG files, or what gives the segment ids of a file name; None: the folder named like
            the JSON file without its ending.

    Raises:
        DataError: a file is missing or is not what it should be; the message names the file and the row.
    """

    protocol = "panoptic"
    headline = ("PQ", "PQ_things", "PQ_stuff")
    class_columns = _NAMES

    def __init__(
        self, ground_truth: Mapping[str, object] | str | Path, *, images: str | Path | ReadIds | None = None
    ) -> None:
        super().__init__()
        self.truth = read_panoptic_truth(ground_truth, images)

    @classmethod
    def of(cls, data: AnnotatedData) -> Self:
        """Panoptic quality on these data."""
        if not isinstance(data, PanopticData):
            raise DataError("the data have no panoptic ground truth: give COCO panoptic files (JSON and PNG)")
        content, images = data.panoptic_ground_truth()
        return cls(content, images=images)

    def extract(self, image_id: int, found: PanopticMap) -> _Counts:
        """Its counts: of segments and pixels for each class that occurs.

        Raises:
            DataError: the map has not the size of the ground truth, or the image is not in it.
            ValueError: the map is of other classes.
        """
        if image_id not in self.truth.images:
            raise DataError(f"image {image_id} is not among the {len(self.truth.images)} of {self.truth.source}")
        if found.categories.ids != self.truth.categories.ids:
            raise ValueError(f"image {image_id}: the map is of other classes than {self.truth.source}")
        listed = [ListedSegment(segment.id, segment.label, None, False) for segment in found.segments]
        classes = len(self.truth.categories)
        return _count(self.truth.images[image_id], found.ids, listed, f"the map of image {image_id}", classes)

    def compute(self) -> PanopticScore:
        """The score of all that it was told since the last reset."""
        return self.score(self.extracts[image_id] for image_id in sorted(self.extracts))

    def score(self, counts: Iterable[_Counts]) -> PanopticScore:
        """The score of the counts of images."""
        classes = len(self.truth.categories)
        sums, pixels = np.zeros((classes, 4)), np.zeros((classes, classes + 1), dtype=np.int64)
        for image in counts:
            sums[image.segments[:, 0].astype(np.int64)] += image.segments[:, 1:]
            pixels[image.pixels[:, 0], image.pixels[:, 1]] += image.pixels[:, 2]
        return _score(sums, pixels, self.truth.categories, self.truth.class_names)


def score_panoptic(
    ground_truth: Mapping[str, object] | str | Path,
    results: Mapping[str, object] | str | Path,
    *,
    gt_images: str | Path | ReadIds | None = None,
    results_images: str | Path | ReadIds | None = None,
) -> PanopticScore:
    """Panoptic quality of results against ground truth: of all classes, of things, of stuff, and of each class.

    Args:
        ground_truth: COCO panoptic JSON as a file or its content; or Cityscapes' ``gtFine`` or one of its splits.
        results: likewise; ``annotations`` is enough. Images are matched by id, or by file name where the results list
            ``images`` (as the ``panoptic.json`` of ``detrkit predict`` does). Areas are measured.
        gt_images: folder of the PNG files of the ground truth, or what gives the segment ids (H, W) of a file name;
            None: the folder named like the JSON file without its ending.
        results_images: the same of the results.

    Raises:
        DataError: a file is missing or is not what it should be; the message names the file and the row.
    """
    if isinstance(ground_truth, str | Path) and Path(ground_truth).is_dir():
        ground_truth, gt_images = cityscapes_panoptic_truth(Path(ground_truth))
    metric = PanopticMetric(ground_truth, images=gt_images)
    found = read_panoptic_results(results, metric.truth, results_images)

    def count(image_id: Hashable) -> _Counts:
        file, classes = found[image_id], len(metric.truth.categories)
        return _count(metric.truth.images[image_id], file.ids(), file.segments, file.where, classes)

    return metric.score(in_threads(count, metric.truth.images))


def _count(
    truth: SegmentFile, found: NDArray[np.integer], listed: Iterable[ListedSegment], where: str, classes: int
) -> _Counts:
    """Counts of one image.

    found: segment ids (H, W) · listed: what is said of them · where: what messages call them · classes: their number.
    """
    ids = truth.ids()
    if ids.shape != found.shape:
        raise DataError(
            f"{where}: is {found.shape[1]}x{found.shape[0]} pixels, but {truth.where} is "
            f"{ids.shape[1]}x{ids.shape[0]}; maps must have the size of their image"
        )
    overlap = _overlaps(ids, found)
    true_area, found_area = _sums(overlap, 0), _sums(overlap, 1)
    true_of = {segment.id: segment for segment in truth.segments}
    label_of = {segment.id: segment.label for segment in listed}
    for place, areas, known in ((truth.where, true_area, true_of), (where, found_area, label_of)):
        problem = id_mismatch(areas.keys() - {0}, known)
        if problem:
            raise DataError(f"{place}: PNG and JSON differ: {problem}; write both from the same segments")

    counts: dict[int, FloatArray] = {}

    def row(label: int) -> FloatArray:
        return counts.setdefault(label, np.zeros(4))

    matched: set[tuple[str, int]] = set()
    for (true_id, found_id), shared in overlap.items():
        true = true_of.get(true_id)
        if true is None or found_id == 0 or true.is_crowd or true.label != label_of[found_id]:
            continue
        # As panopticapi does: the area that the JSON says, which is that of the PNG in sound files.
        stated = true_area[true_id] if true.area is None else true.area
        union = found_area[found_id] + stated - shared - overlap.get((0, found_id), 0)
        if union < shared:
            raise DataError(
                f"{truth.where}: segment {true_id} has area {stated:g} in the JSON but {true_area[true_id]} pixels in "
                "the PNG; mend the area or leave it out"
            )
        if shared / union > 0.5:
            row(true.label)[[_IOU, _HIT]] += shared / union, 1
            matched |= {("true", true_id), ("found", found_id)}

    crowds = {segment.label: segment.id for segment in truth.segments if segment.is_crowd}  # the last of each class
    for true in truth.segments:
        if not true.is_crowd and ("true", true.id) not in matched:
            row(true.label)[_MISSED] += 1
    for found_id, label in label_of.items():
        if ("found", found_id) in matched:
            continue
        excused = overlap.get((0, found_id), 0)
        if label in crowds:
            excused += overlap.get((crowds[label], found_id), 0)
        if not excused / found_area[found_id] > 0.5:
            row(label)[_FALSE] += 1
    segments = np.array([[label, *counts[label]] for label in sorted(counts)]).reshape(-1, 5)
    return _Counts(segments, _class_pixels(overlap, true_of, {0: classes} | label_of))


def _class_pixels(
    overlap: Mapping[tuple[int, int], int], true_of: Mapping[int, ListedSegment], label_of: Mapping[int, int]
) -> NDArray[np.int64]:
    """(N, 3): class as labelled, class as found and their pixels, without void and crowds."""
    counts: dict[tuple[int, int], int] = {}
    for (true_id, found_id), shared in overlap.items():
        true = true_of.get(true_id)
        if true is not None and not true.is_crowd:
            pair = true.label, label_of[found_id]
            counts[pair] = counts.get(pair, 0) + shared
    return np.array([[*pair, shared] for pair, shared in counts.items()], dtype=np.int64).reshape(-1, 3)


def _overlaps(first: NDArray[np.integer], second: NDArray[np.integer]) -> dict[tuple[int, int], int]:
    """How many pixels each pair of ids shares.

    Counted over runs of equal pairs, of which there are far fewer than pixels.
    """
    if not first.size:
        return {}
    one, other = np.ravel(first), np.ravel(second)
    change = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    starts = np.concatenate([[0], np.flatnonzero(change) + 1])
    keys = one[starts].astype(np.int64) * (MAX_ID + 1) + other[starts]
    pairs, place = np.unique(keys, return_inverse=True)
    pixels = np.bincount(place, weights=np.diff(starts, append=one.size)).astype(np.int64)
    true, found = np.divmod(pairs, MAX_ID + 1)
    return dict(zip(zip(true.tolist(), found.tolist(), strict=True), pixels.tolist(), strict=True))


def _sums(overlap: Mapping[tuple[int, int], int], side: int) -> dict[int, int]:
    """The area of every id of one of the two maps."""
    areas: dict[int, int] = {}
    for pair, pixels in overlap.items():
        areas[pair[side]] = areas.get(pair[side], 0) + pixels
    return areas


def _score(sums: FloatArray, pixels: NDArray[np.int64], categories: Categories, names: list[str]) -> PanopticScore:
    """Numbers of counts (classes, 4)."""
    iou, hit, false, missed = sums.T
    occurs = hit + false + missed > 0
    weight = np.where(occurs, hit + (false + missed) / 2, 1)
    table = np.stack([iou / weight, iou / np.maximum(hit, 1), hit / weight], axis=1)
    is_thing = np.array([category.is_thing for category in categories])
    metrics: dict[str, float | None] = {}
    num_classes: dict[str, int] = {}
    for (group, suffix), chosen in zip(_GROUPS.items(), (occurs, occurs & is_thing, occurs & ~is_thing), strict=True):
        num_classes[group] = int(chosen.sum())
        means = table[chosen].mean(axis=0).tolist() if chosen.any() else [None] * 3
        metrics |= {name + suffix: mean for name, mean in zip(_NAMES, means, strict=True)}
    per_class: dict[str, Numbers] = {
        name: dict(zip(_NAMES, row.tolist() if seen else [None] * 3, strict=True))
        for name, row, seen in zip(names, table, occurs, strict=True)
    }
    return PanopticScore(
        protocol=PanopticMetric.protocol,
        iou_type="segm",
        metrics=metrics,
        per_class=per_class,
        headline=PanopticMetric.headline,
        num_classes=num_classes,
        pixels=pixels,
    )
