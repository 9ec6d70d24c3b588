"""Detections and ground truth of an evaluation as columns, the input of every analysis."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import hotcoco.mask
import numpy as np
from numpy.typing import NDArray

from detrkit.metrics.instances import InstanceMetric
from detrkit.metrics.object_table import ObjectTable
from detrkit.metrics.protocol import IouType
from detrkit.structures import NEGATIVES, NOT_EXHAUSTIVE

__all__ = ["FoundObjects", "LabelledObjects", "ScoredImage", "ScoredSet", "scored_set", "xywh"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ScoredImage:
    """An image of the evaluation: its id in the data set, file name, and size in pixels (0 where not known)."""

    id: Hashable
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class LabelledObjects:
    """G objects of the ground truth, sorted by image.

    Attributes:
        image: (G,) positions in the images of the set.
        label: (G,) classes, 0..K-1.
        boxes: (G, 4) xyxy in pixels.
        crowd: (G,) regions in which detections are neither right nor wrong.
        masks: compressed run lengths; None: boxes only.
    """

    image: IntArray
    label: IntArray
    boxes: FloatArray
    crowd: BoolArray
    masks: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, kw_only=True)
class FoundObjects:
    """D detections, sorted by image and in it by descending score.

    Attributes:
        image: (D,) positions in the images of the set.
        label: (D,) classes, 0..K-1.
        boxes: (D, 4) xyxy in pixels.
        score: (D,).
        lenient: (D,) neither right nor wrong if they match nothing (LVIS: classes whose objects are not all labelled).
        masks: compressed run lengths; None: boxes only.
    """

    image: IntArray
    label: IntArray
    boxes: FloatArray
    score: FloatArray
    lenient: BoolArray
    masks: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, kw_only=True)
class ScoredSet:
    """The detections that count in an evaluation, and the ground truth of its images.

    Attributes:
        images: the evaluated images.
        class_names: K unique names.
        iou_type: ``"bbox"`` or ``"segm"``.
        truth: objects of the ground truth.
        found: detections within the protocol's limit.
    """

    images: tuple[ScoredImage, ...]
    class_names: tuple[str, ...]
    iou_type: IouType
    truth: LabelledObjects
    found: FoundObjects

    @cached_property
    def truth_slices(self) -> list[slice]:
        """The objects of each image."""
        return _slices(self.truth.image, len(self.images))

    @cached_property
    def found_slices(self) -> list[slice]:
        """The detections of each image."""
        return _slices(self.found.image, len(self.images))

    @cached_property
    def overlaps(self) -> list[FloatArray]:
        """(D, G) for each image: IoU of detections and objects; for a crowd, the share of the detection inside it."""
        return [self._overlap(found, truth) for found, truth in zip(self.found_slices, self.truth_slices, strict=True)]

    def _overlap(self, found: slice, truth: slice) -> FloatArray:
        shape = found.stop - found.start, truth.stop - truth.start
        if not all(shape):
            return np.zeros(shape)
        crowd = self.truth.crowd[truth].tolist()
        if self.found.masks is None or self.truth.masks is None:
            return hotcoco.mask.iou(xywh(self.found.boxes[found]), xywh(self.truth.boxes[truth]), crowd)
        return hotcoco.mask.iou(self.found.masks[found], self.truth.masks[truth], crowd)


def scored_set(
    metric: InstanceMetric, results: ObjectTable, *, image_ids: Iterable[Hashable] | None = None
) -> ScoredSet:
    """The detections that count, and the ground truth, of an evaluation.

    Args:
        metric: the protocol with its ground truth.
        results: detections as ``read_results`` returns them for ``metric.truth``.
        image_ids: the images that were evaluated; None: all images.
    """
    truth, masks = metric.truth, metric.iou_type == "segm"
    numbers = truth.image_numbers
    evaluated = numbers if image_ids is None else [key for key in image_ids if key in numbers]
    ids = sorted(evaluated, key=numbers.__getitem__)
    place = np.full(len(numbers) + 1, -1, dtype=np.int64)
    for position, key in enumerate(ids):
        place[numbers[key]] = position
    labelled = _labelled(metric, place, masks=masks)
    return ScoredSet(
        images=tuple(_image(key, truth.image(numbers[key])) for key in ids),
        class_names=tuple(truth.class_names),
        iou_type=metric.iou_type,
        truth=labelled,
        found=_found(metric, results, place, labelled, masks=masks),
    )


def _image(key: Hashable, row: dict[str, Any]) -> ScoredImage:
    name = str(row.get("file_name", key))
    return ScoredImage(id=key, file_name=name, width=int(row.get("width", 0)), height=int(row.get("height", 0)))


def _labelled(metric: InstanceMetric, place: IntArray, *, masks: bool) -> LabelledObjects:
    objects = metric.truth.objects
    image = place[objects.images]
    order = np.argsort(image, kind="stable")
    order = order[image[order] >= 0]
    objects = objects[order]
    return LabelledObjects(
        image=image[order],
        label=objects.labels,
        boxes=_xyxy(objects.boxes),
        crowd=objects.crowds,
        masks=metric.run_lengths(objects) if masks else None,
    )


def _found(
    metric: InstanceMetric, results: ObjectTable, place: IntArray, truth: LabelledObjects, *, masks: bool
) -> FoundObjects:
    image, label, score = place[results.images], results.labels, results.values.copy()
    outlines = metric.run_lengths(results) if masks else []
    boxes = _xyxy(_boxes_of(outlines) if masks else results.boxes)
    kept, lenient = image >= 0, np.zeros(len(score), dtype=bool)
    if metric.protocol == "lvis":  # its limit counts all classes, also those that are not judged in an image
        kept[_beyond(metric.limit, score, image)] = False
        judged, lenient = _lvis_rules(metric, place, truth, image, label)
        kept &= judged
    else:
        kept[_beyond(metric.limit, score, image, label)] = False
    order = np.lexsort((-score, image))
    order = order[kept[order]]
    return FoundObjects(
        image=image[order],
        label=label[order],
        boxes=boxes[order],
        score=score[order],
        lenient=lenient[order],
        masks=[outlines[position] for position in order.tolist()] if masks else None,
    )


def _beyond(limit: int, score: FloatArray, *groups: IntArray) -> IntArray:
    """Positions of the detections that are not among the best ``limit`` of their group."""
    order = np.lexsort((-score, *groups))
    sorted_groups = np.stack(groups)[:, order]
    starts = np.concatenate([[True], (np.diff(sorted_groups, axis=1) != 0).any(axis=0)])[: len(order)]
    position = np.arange(len(order))
    rank = position - np.maximum.accumulate(np.where(starts, position, 0))
    return order[rank >= limit]


def _lvis_rules(
    metric: InstanceMetric, place: IntArray, truth: LabelledObjects, image: IntArray, label: IntArray
) -> tuple[BoolArray, BoolArray]:
    """For each detection whether its class is judged in its image, and whether not all objects of it are labelled."""
    shape = max(1, int(place.max(initial=-1)) + 1), len(metric.truth.class_names)
    judged, partly = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    judged[truth.image, truth.label] = True
    for row in metric.truth.image_rows:
        position = place[row["id"]]
        if position >= 0:
            judged[position, row[NEGATIVES]] = True
            partly[position, row[NOT_EXHAUSTIVE]] = True
    inside = image >= 0
    return inside & judged[image, label], inside & partly[image, label]


def _boxes_of(outlines: Sequence[Any]) -> FloatArray:
    return np.asarray(hotcoco.mask.to_bbox(list(outlines))).reshape(-1, 4) if outlines else np.zeros((0, 4))


def _xyxy(boxes: object) -> FloatArray:
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return corners


def xywh(boxes: FloatArray) -> FloatArray:
    """Boxes (N, 4) xyxy as x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _slices(image: IntArray, count: int) -> list[slice]:
    edges = np.searchsorted(image, np.arange(count + 1)).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]
