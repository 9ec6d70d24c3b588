"""Precision and recall of scored objects: the shared part of the COCO and LVIS protocols.

hotcoco does the matching and counting; no other file uses it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import hotcoco
import numpy as np
from numpy.typing import NDArray

from detrkit.data.coco_json import Row
from detrkit.data.packed_masks import Rle
from detrkit.metrics.coco_files import GroundTruth, Results, read_results
from detrkit.metrics.protocol import IouType, PerImageMetric
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
        self._annotations = hotcoco.COCO(truth.dataset)
        unmeasured = [row["id"] for row in truth.dataset["annotations"] if "area" not in row]
        if unmeasured:
            masks = [self._annotations.ann_to_rle(row) for row in self._annotations.load_anns(unmeasured)]
            self._annotations.update_anns(ids=unmeasured, area=[float(hotcoco.mask.area(mask)) for mask in masks])

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
    def score(self, rows: Results, *, image_ids: Iterable[int] | None = None) -> Score:
        """The score of results.

        Args:
            rows: results as returned by ``read_results`` for ``self.truth``.
            image_ids: ids of the images that count; None: all images.
        """

    def curves(
        self,
        rows: Results,
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
        evaluation = self._evaluation(rows, image_ids, max_detections=max_detections, lvis=lvis)
        if class_agnostic:
            evaluation.params.use_cats = False
        # Unlike summarize(), these two print nothing to stdout.
        evaluation.evaluate()
        evaluation.accumulate()
        arrays = evaluation.eval
        if arrays is None:
            raise RuntimeError("hotcoco returned no evaluation")
        return Curves(arrays["precision"], arrays["recall"])

    def tide(self, rows: Results, image_ids: Iterable[int] | None = None) -> Tide:
        """What kinds of errors cost how much AP50 (TIDE, Bolya et al., ECCV 2020), as hotcoco computes it.

        Args:
            rows: as for :meth:`score`.
            image_ids: as for :meth:`score`.
        """
        lvis = self.protocol == "lvis"
        evaluation = self._evaluation(rows, image_ids, max_detections=[self.limit], lvis=lvis)
        evaluation.evaluate()
        found = evaluation.tide_errors()
        return Tide(ap50=found["ap_base"], cost=dict(found["delta_ap"]), counts=dict(found["counts"]))

    def mask_of(self, annotation: Row) -> Rle:
        """The mask of an object of the ground truth as compressed run lengths."""
        return self._annotations.ann_to_rle(annotation)

    def _evaluation(
        self, rows: Results, image_ids: Iterable[int] | None, *, max_detections: Sequence[int], lvis: bool
    ) -> hotcoco.COCOeval:
        """The evaluation of results, ready to run."""
        truth = self._annotations
        results = hotcoco.LVISResults(truth, rows, max_detections[-1]) if lvis else truth.load_res(rows)
        evaluation = hotcoco.COCOeval(truth, results, self.iou_type, lvis_style=lvis)
        evaluation.params.max_dets = list(max_detections)
        if image_ids is not None:
            numbers = self.truth.image_numbers
            # no image has number 0; an empty list would mean all images
            evaluation.params.img_ids = sorted(numbers[key] for key in image_ids if key in numbers) or [0]
        return evaluation


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
    return float(defined.mean()) if defined.size else None
