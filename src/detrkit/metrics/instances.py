"""Precision and recall of lists of objects with scores: what the COCO and LVIS protocols share.

hotcoco matches and counts, and this is the only file that knows it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal, NamedTuple

import hotcoco
import numpy as np
from numpy.typing import NDArray

from detrkit.data.coco_json import Row
from detrkit.metrics.coco_files import GroundTruth, read_results
from detrkit.metrics.protocol import PerImage
from detrkit.metrics.score import Score
from detrkit.structures import Detections
from detrkit.structures.detections import ResultRow

__all__ = ["AREAS", "IOU50", "IOU75", "Curves", "InstanceMetric", "IouType", "check_iou_type", "mean_defined"]

FloatArray = NDArray[np.float64]
IouType = Literal["bbox", "segm"]


# Positions on the axes of hotcoco's arrays: IoU thresholds .50, .55 … .95; areas all, small, medium, large.
IOU50, IOU75 = 0, 5
AREAS = {"": 0, "s": 1, "m": 2, "l": 3}


class Curves(NamedTuple):
    """-1 stands where there is no ground truth of the kind.

    precision: (IoU thresholds, recall points, classes, areas, numbers of detections) · recall: the same without recall
    points.
    """

    precision: FloatArray
    recall: FloatArray

    def of_class(self, index: int) -> Curves:
        """Those of one class."""
        return Curves(self.precision[:, :, index : index + 1], self.recall[:, index : index + 1])


class InstanceMetric(PerImage[Detections, list[ResultRow]]):
    """A protocol over a COCO results list.

    Args:
        truth: cleaned ground truth, read for the same ``iou_type``.
        iou_type: overlap of ``"bbox"`` or of ``"segm"`` masks.
    """

    def __init__(self, truth: GroundTruth, *, iou_type: IouType) -> None:
        super().__init__()
        self.truth, self.iou_type = truth, iou_type
        self._annotations = hotcoco.COCO(truth.dataset)
        unmeasured = [row["id"] for row in truth.dataset["annotations"] if "area" not in row]
        if unmeasured:
            masks = [self._annotations.ann_to_rle(row) for row in self._annotations.load_anns(unmeasured)]
            self._annotations.update_anns(ids=unmeasured, area=[float(hotcoco.mask.area(mask)) for mask in masks])

    def keep(self, image_id: int, found: Detections) -> list[ResultRow]:
        """Its rows of the results list."""
        return found.to_coco(image_id)

    def compute(self) -> Score:
        """The score of all that it was told since the last reset."""
        rows = [row for rows in self.kept.values() for row in rows]
        return self.score(read_results(rows, self.truth, iou_type=self.iou_type), image_ids=self.kept)

    @abstractmethod
    def score(self, rows: list[Row], *, image_ids: Iterable[int] | None = None) -> Score:
        """The score of results.

        Args:
            rows: what ``read_results`` made of the results for ``self.truth``.
            image_ids: ids of the images that count; None: all of them.
        """

    def curves(
        self,
        rows: list[Row],
        image_ids: Iterable[int] | None,
        *,
        class_agnostic: bool = False,
        lvis_detections: int | None = None,
    ) -> Curves:
        """Precision and recall of results.

        Args:
            rows: as for :meth:`score`.
            image_ids: likewise.
            class_agnostic: objects match objects of any class.
            lvis_detections: count as LVIS does, with at most so many detections per image over all classes; the last
                axis then has length 1.
        """
        truth, lvis = self._annotations, lvis_detections is not None
        results = truth.load_res(rows) if lvis_detections is None else hotcoco.LVISResults(truth, rows, lvis_detections)
        evaluation = hotcoco.COCOeval(truth, results, self.iou_type, lvis_style=lvis)
        if lvis_detections is not None:
            evaluation.params.max_dets = [lvis_detections]
        if image_ids is not None:
            numbers = self.truth.image_numbers
            # no image has number 0; an empty list would mean all of them
            evaluation.params.img_ids = sorted(numbers[key] for key in image_ids if key in numbers) or [0]
        if class_agnostic:
            evaluation.params.use_cats = False
        # Unlike summarize(), these two print nothing: stdout belongs to the caller.
        evaluation.evaluate()
        evaluation.accumulate()
        arrays = evaluation.eval
        if arrays is None:
            raise RuntimeError("hotcoco returned no evaluation")
        return Curves(arrays["precision"], arrays["recall"])


def check_iou_type(iou_type: str) -> None:
    """Raises ValueError for anything but "bbox" and "segm"."""
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type must be 'bbox' or 'segm', not {iou_type!r}")


def mean_defined(values: FloatArray) -> float | None:
    """Mean over the defined entries; None when the ground truth has nothing of the kind."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
