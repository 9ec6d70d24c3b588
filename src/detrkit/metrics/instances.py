"""Precision and recall of scored objects: the shared part of the COCO and LVIS protocols.

hotcoco does the matching and counting; no other file uses it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import hotcoco
import numpy as np
from numpy.typing import NDArray

from detrkit.data.coco_json import Row
from detrkit.data.packed_masks import Rle
from detrkit.metrics.coco_files import GroundTruth
from detrkit.metrics.object_table import ObjectTable
from detrkit.metrics.protocol import IouType, PerImageMetric
from detrkit.metrics.result_files import read_results
from detrkit.metrics.score import Score
from detrkit.structures import Detections
from detrkit.structures.detections import ResultRow

__all__ = [
    "AREAS",
    "IOU50",
    "IOU75",
    "Curves",
    "InstanceMetric",
    "Tide",
    "check_iou_type",
    "check_max_detections",
    "mean_defined",
]

FloatArray = NDArray[np.float64]

_OBJECTS = {"bbox": 32_000, "segm": 8_000}
"""Objects, annotated and found, that are matched at a time; about, as images are not divided."""

# Positions on the axes of hotcoco's arrays: IoU thresholds .50, .55 … .95; areas all, small, medium, large.
IOU50, IOU75 = 0, 5
AREAS = {"": 0, "s": 1, "m": 2, "l": 3}


class Curves(NamedTuple):
    """Precision and recall of an evaluation; -1 where there is no ground truth."""

    precision: FloatArray
    """(IoU thresholds, recall points, classes, areas, detection limits)."""

    recall: FloatArray
    """(IoU thresholds, classes, areas, detection limits)."""

    def of_class(self, index: int) -> Curves:
        """The curves of one class."""
        return Curves(self.precision[:, :, index : index + 1], self.recall[:, index : index + 1])


class Tide(NamedTuple):
    """What kinds of errors cost how much AP50.

    Kinds: ``Cls`` wrong class, ``Loc`` loose box, ``Both``, ``Dupe`` duplicate, ``Bkg`` nothing there, ``Miss`` missed;
    ``cost`` has also ``FP`` (all false detections) and ``FN`` (all missed objects).
    """

    ap50: float
    """AP at IoU 0.5, mean over the classes."""

    cost: dict[str, float]
    """How much higher it would be without the errors of a kind."""

    counts: dict[str, int]
    """Number of errors of each kind."""


class InstanceMetric(PerImageMetric[Detections, list[ResultRow]]):
    """A protocol over a COCO results list.

    Args:
        truth: cleaned ground truth, read for the same ``iou_type``.
        iou_type: IoU of boxes (``"bbox"``) or of masks (``"segm"``).
    """

    def __init__(self, truth: GroundTruth, *, iou_type: IouType) -> None:
        super().__init__()
        self.truth, self.iou_type = truth, iou_type
        objects = truth.objects
        self._truth = _sorted(objects if iou_type == "bbox" else objects.with_values(self._measured(objects)))

    def _measured(self, objects: ObjectTable) -> FloatArray:
        """The areas of annotations, those that the file does not give measured on the mask."""
        areas = objects.values.copy()
        for part in np.array_split(
            unknown := np.flatnonzero(np.isnan(areas)), len(unknown) // _OBJECTS[self.iou_type] + 1
        ):
            rows = list(objects[part].truth_rows(1))
            images = [self.truth.image(number) for number in {row["image_id"] for row in rows}]
            data = hotcoco.COCO({"images": images, "annotations": rows, "categories": self.truth.category_rows})
            areas[part] = [float(hotcoco.mask.area(data.ann_to_rle(row))) for row in rows]
        return areas

    def extract(self, image_id: int, result: Detections) -> list[ResultRow]:
        """Rows of an image in the results list."""
        return result.to_coco(image_id)

    def compute(self) -> Score:
        """The score of all images since the last reset."""
        rows = [row for rows in self.extracts.values() for row in rows]
        return self.score(read_results(rows, self.truth, iou_type=self.iou_type), image_ids=self.extracts)

    @property
    @abstractmethod
    def limit(self) -> int:
        """The most detections that count, per image and class, or with LVIS per image."""

    @abstractmethod
    def score(self, rows: ObjectTable, *, image_ids: Iterable[int] | None = None) -> Score:
        """The score of results.

        Args:
            rows: results as returned by ``read_results`` for ``self.truth``.
            image_ids: ids of the images that count; None: all images.
        """

    def curves(
        self,
        rows: ObjectTable,
        image_ids: Iterable[int] | None,
        *,
        class_agnostic: bool = False,
        max_detections: Sequence[int],
        lvis: bool = False,
    ) -> Curves:
        """Precision and recall of results.

        Args:
            rows: as for :meth:`score`.
            image_ids: as for :meth:`score`.
            class_agnostic: match objects of any class.
            max_detections: ascending limits of the number of detections that count: per image and class, or with
                ``lvis`` per image over all classes; the last axis of the result.
            lvis: the LVIS protocol, which takes one limit.
        """
        parameters = hotcoco.Params(self.iou_type)
        parameters.max_dets = list(max_detections)
        parameters.use_cats = not class_agnostic
        evaluation = hotcoco.StreamingEval(self.truth.category_rows, self.iou_type, lvis, parameters)
        for images, annotated, found in self._parts(rows, image_ids, max_detections[-1] if lvis else None):
            evaluation.update(images, annotated, found)
        finished = evaluation.finalize()
        finished.accumulate()  # unlike summarize(), it prints nothing to stdout
        arrays = finished.eval
        if arrays is None:
            raise RuntimeError("hotcoco returned no evaluation")
        return Curves(arrays["precision"], arrays["recall"])

    def tide(self, rows: ObjectTable, image_ids: Iterable[int] | None = None) -> Tide:
        """What kinds of errors cost how much AP50 (TIDE, Bolya et al., ECCV 2020), as hotcoco computes it.

        Args:
            rows: as for :meth:`score`.
            image_ids: as for :meth:`score`.
        """
        truth, lvis = self._coco(list(self._truth.truth_rows(1))), self.protocol == "lvis"
        table = _sorted(rows)
        found = table.numbers if self.iou_type == "bbox" else list(table.mask_results())
        results = hotcoco.LVISResults(truth, found, self.limit) if lvis else truth.load_res(found)
        evaluation = hotcoco.COCOeval(truth, results, self.iou_type, lvis_style=lvis)
        evaluation.params.max_dets = [self.limit]
        if image_ids is not None:
            numbers = self.truth.image_numbers
            # no image has number 0; an empty list would mean all images
            evaluation.params.img_ids = sorted(numbers[key] for key in image_ids if key in numbers) or [0]
        evaluation.evaluate()
        errors = evaluation.tide_errors()
        return Tide(ap50=errors["ap_base"], cost=dict(errors["delta_ap"]), counts=dict(errors["counts"]))

    def run_lengths(self, objects: ObjectTable) -> list[Rle]:
        """The masks of objects as compressed run lengths."""
        data = self._coco([])
        return [data.ann_to_rle(row) for row in objects.outlines()]

    def _coco(self, annotations: list[Row]) -> hotcoco.COCO:
        images, categories = self.truth.image_rows, self.truth.category_rows
        return hotcoco.COCO({"images": images, "annotations": annotations, "categories": categories})

    def _parts(
        self, results: ObjectTable, image_ids: Iterable[int] | None, limit: int | None
    ) -> Iterator[tuple[list[Row], list[Row], list[Row] | FloatArray]]:
        """Some images at a time with what is annotated and found in them, so that memory is needed only for these.

        limit: detections of an image that count, over all classes.
        """
        numbers = self.truth.image_numbers
        wanted = np.full(len(numbers), image_ids is None)
        for key in () if image_ids is None else image_ids:
            if key in numbers:
                wanted[numbers[key] - 1] = True
        tables = [self._truth, _sorted(results)]
        if limit is not None:
            tables[1] = tables[1][_best(tables[1], limit)]
        if image_ids is not None:
            tables = [table[wanted[table.images - 1]] for table in tables]
        starts = [np.searchsorted(table.images, np.arange(1, len(numbers) + 2)) for table in tables]
        for first, last in _runs((starts[0] + starts[1])[:-1] // _OBJECTS[self.iou_type]):
            images = [self.truth.image(number + 1) for number in range(first, last) if wanted[number]]
            truth, found = (table[start[first] : start[last]] for table, start in zip(tables, starts, strict=True))
            annotated = list(truth.truth_rows(1 + int(starts[0][first])))
            yield images, annotated, found.numbers if self.iou_type == "bbox" else list(found.mask_results())


def _sorted(table: ObjectTable) -> ObjectTable:
    """The objects by image, those of one image in their order."""
    images = table.images
    in_order = bool((images[1:] >= images[:-1]).all())
    return table if in_order else table[np.argsort(images, kind="stable")]


def _best(table: ObjectTable, limit: int) -> NDArray[np.int64]:
    """Places of the highest scores of each image, in their order; of equal ones the first. The table is sorted."""
    images = table.images
    order = np.lexsort((-table.values, images))
    rank = np.arange(len(order)) - np.searchsorted(images, images[order])
    return np.sort(order[rank < limit])


def _runs(values: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and last index, exclusive, of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    yield from pairwise(edges)


def check_iou_type(iou_type: str) -> None:
    """Raise ValueError unless ``iou_type`` is "bbox" or "segm"."""
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type must be 'bbox' or 'segm', not {iou_type!r}")


def check_max_detections(max_detections: int) -> None:
    """Raise ValueError unless ``max_detections`` is at least 1."""
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, not {max_detections}")


def mean_defined(values: FloatArray) -> float | None:
    """Mean over the defined entries; None if there are none."""
    defined = values[values > -1]
    return float(np.add.reduce(defined) / defined.size) if defined.size else None
