"""COCO average precision and recall of boxes and masks, as in pycocotools (cocodataset.org/#detection-eval)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from detrkit.metrics.coco_files import read_ground_truth
from detrkit.metrics.instances import (
    AREAS,
    IOU50,
    IOU75,
    Curves,
    InstanceMetric,
    check_iou_type,
    check_max_detections,
    mean_defined,
)
from detrkit.metrics.object_table import ObjectTable
from detrkit.metrics.protocol import AnnotatedData, IouType
from detrkit.metrics.result_files import read_results, reading_ahead
from detrkit.metrics.score import Score

__all__ = ["METRICS", "CocoMetric", "score_coco"]

_MAX_DETECTIONS = 100
"""Detections per image and class that count in the published protocol."""

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class CocoMetric(InstanceMetric):
    """COCO AP and AR.

    Args:
        ground_truth: COCO annotations as a file or a mapping.
        iou_type: IoU of boxes (``"bbox"``) or of masks (``"segm"``).
        class_agnostic: match objects of any class (pycocotools ``useCats=0``); there is then no per-class table.
        max_detections: detections per image and class that count, best first. With more than COCO's 100, the numbers of
            images with many objects are no longer comparable with published ones; ``AR100`` is then called, for
            example, ``AR500``.

    Raises:
        DataError: the file is missing or invalid; the message names the file and the row.
    """

    protocol = "coco"
    headline = ("AP", "AP50", "AP75")
    class_columns = ("AP", "AP50", "AP75", "AR100")

    def __init__(
        self,
        ground_truth: Mapping[str, object] | str | Path,
        *,
        iou_type: IouType = "bbox",
        class_agnostic: bool = False,
        max_detections: int = _MAX_DETECTIONS,
    ) -> None:
        check_iou_type(iou_type)
        check_max_detections(max_detections)
        super().__init__(read_ground_truth(ground_truth, iou_type=iou_type), iou_type=iou_type)
        self.class_agnostic = class_agnostic
        self.limits = [*(limit for limit in (1, 10) if limit < max_detections), max_detections]
        self.boxes: CocoMetric | None = None

    @classmethod
    def of(cls, data: AnnotatedData) -> Self:
        """COCO AP of boxes for a data set, or, if it has masks, that of masks and beside it that of boxes."""
        ground_truth = data.coco_ground_truth()
        limit = data.max_detections or _MAX_DETECTIONS
        metric = cls(ground_truth, iou_type=data.iou_type, max_detections=limit)
        if data.iou_type == "segm":
            metric.boxes = cls(ground_truth, max_detections=limit)
        return metric

    @property
    def limit(self) -> int:
        return self.limits[-1]

    def compute(self) -> Score:
        """The score of all images since the last reset; with masks also ``box_AP``, ``box_AP50`` and ``box_AP75``."""
        score = super().compute()
        if self.boxes is None:
            return score
        rows = [row for rows in self.extracts.values() for row in rows]
        found = self.boxes.score(read_results(rows, self.boxes.truth, iou_type="bbox"), image_ids=self.extracts)
        return replace(
            score, metrics={**score.metrics, **{f"box_{name}": found.metrics[name] for name in self.headline}}
        )

    def score(self, rows: ObjectTable, *, image_ids: Iterable[int] | None = None) -> Score:
        """The 12 COCO numbers, overall and per class."""
        curves = self.curves(rows, image_ids, class_agnostic=self.class_agnostic, max_detections=self.limits)
        names = [] if self.class_agnostic else self.truth.class_names
        return Score(
            protocol=self.protocol,
            iou_type=self.iou_type,
            metrics=_summary(curves, self.limits),
            per_class={name: _summary(curves.of_class(k), self.limits) for k, name in enumerate(names)},
            headline=self.headline,
        )


def score_coco(
    ground_truth: Mapping[str, object] | str | Path,
    results: Sequence[Mapping[str, object]] | Mapping[str, object] | str | Path,
    *,
    iou_type: IouType = "bbox",
    class_agnostic: bool = False,
    max_detections: int = _MAX_DETECTIONS,
) -> Score:
    """COCO AP and AR of a results list against ground truth, overall and per class.

    Results of a class that the ground truth does not list are ignored with a warning; pycocotools ignores them too.

    Args:
        ground_truth: COCO annotations as a file or a mapping.
        results: a COCO results list, or a JSON object with ``images`` and ``annotations`` such as the
            ``predictions.json`` of ``detrkit predict``, whose images are matched by file name; as a file or in memory.
        iou_type: IoU of boxes (``"bbox"``) or of masks (``"segm"``).
        class_agnostic: match objects of any class (pycocotools ``useCats=0``); there is then no per-class table.
        max_detections: as in :class:`CocoMetric`.

    Raises:
        DataError: a file is missing or invalid; the message names the file and the row.
    """
    with reading_ahead(results, iou_type=iou_type, others=ground_truth) as ahead:
        metric = CocoMetric(
            ground_truth, iou_type=iou_type, class_agnostic=class_agnostic, max_detections=max_detections
        )
        return metric.score(read_results(results, metric.truth, iou_type=iou_type, ahead=ahead))


def _summary(curves: Curves, limits: Sequence[int]) -> dict[str, float | None]:
    """The 12 COCO numbers, averaged over the classes of the curves."""
    precision, recall = curves
    numbers: dict[str, float | None] = {
        "AP": mean_defined(precision[:, :, :, 0, -1]),
        "AP50": mean_defined(precision[IOU50, :, :, 0, -1]),
        "AP75": mean_defined(precision[IOU75, :, :, 0, -1]),
    }
    for suffix in "sml":
        numbers[f"AP{suffix}"] = mean_defined(precision[:, :, :, AREAS[suffix], -1])
    for position, limit in enumerate(limits):
        numbers[f"AR{limit}"] = mean_defined(recall[:, :, 0, position])
    for suffix in "sml":
        numbers[f"AR{suffix}"] = mean_defined(recall[:, :, AREAS[suffix], -1])
    return numbers
