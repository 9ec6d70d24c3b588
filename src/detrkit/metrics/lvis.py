"""LVIS average precision of boxes and masks (Gupta et al., LVIS, section 4).

LVIS annotates each image for some of its 1203 classes: classes that occur (``annotations``) and classes verified to be
absent (``neg_category_ids``). Detections of other classes are ignored, as they are neither right nor wrong. If a class
is not exhaustively annotated in an image (``not_exhaustive_category_ids``), its unmatched detections are ignored too.
The 300 best detections per image over all classes count.

Numbers and names are those of lvis-api.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from detrkit.data.coco_json import lvis_problems
from detrkit.errors import DataError
from detrkit.metrics.coco_files import GroundTruth, read_ground_truth
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
from detrkit.structures import FREQUENCIES, NEGATIVES, NOT_EXHAUSTIVE

__all__ = ["LvisMetric", "score_lvis"]

_MAX_DETECTIONS = 300
"""Detections per image that count in the published protocol."""


class LvisMetric(InstanceMetric):
    """LVIS AP and AR.

    Args:
        ground_truth: LVIS annotations as a file or a mapping.
        iou_type: IoU of boxes (``"bbox"``) or of masks (``"segm"``).
        max_detections: number of detections per image that count, best first.

    Raises:
        DataError: the file is missing or invalid; the message names the file and the row.
    """

    protocol = "lvis"
    headline = ("AP", "AP50", "AP75")
    class_columns = ("AP", "AP50", "AP75")

    def __init__(
        self,
        ground_truth: Mapping[str, object] | str | Path,
        *,
        iou_type: IouType = "bbox",
        max_detections: int = _MAX_DETECTIONS,
    ) -> None:
        check_iou_type(iou_type)
        check_max_detections(max_detections)
        truth = read_ground_truth(ground_truth, iou_type=iou_type)
        self._frequencies = _add_lvis(truth)
        super().__init__(truth, iou_type=iou_type)
        self.max_detections = max_detections

    @classmethod
    def of(cls, data: AnnotatedData) -> Self:
        """LVIS AP of boxes for a data set, or of masks if it has them."""
        limit = data.max_detections or _MAX_DETECTIONS
        return cls(data.coco_ground_truth(), iou_type=data.iou_type, max_detections=limit)

    @property
    def limit(self) -> int:
        return self.max_detections

    def score(self, rows: ObjectTable, *, image_ids: Iterable[int] | None = None) -> Score:
        """The LVIS numbers, overall and per class."""
        curves = self.curves(rows, image_ids, max_detections=[self.max_detections], lvis=True)
        by_frequency: dict[str, float | None] = {}
        for letter in FREQUENCIES:
            classes = [k for k, other in enumerate(self._frequencies) if other == letter]
            by_frequency[f"AP{letter}"] = mean_defined(curves.precision[:, :, classes, 0, 0])
        return Score(
            protocol=self.protocol,
            iou_type=self.iou_type,
            metrics=_precisions(curves) | by_frequency | _recalls(curves, self.max_detections),
            per_class={
                class_name: _precisions(curves.of_class(k)) | _recalls(curves.of_class(k), self.max_detections)
                for k, class_name in enumerate(self.truth.class_names)
            },
            headline=self.headline,
        )


def score_lvis(
    ground_truth: Mapping[str, object] | str | Path,
    results: Sequence[Mapping[str, object]] | Mapping[str, object] | str | Path,
    *,
    iou_type: IouType = "bbox",
    max_detections: int = _MAX_DETECTIONS,
) -> Score:
    """LVIS AP and AR of a results list against LVIS annotations, overall and per class.

    Args:
        ground_truth: LVIS annotations as a file or a mapping. Every image needs ``neg_category_ids`` and
            ``not_exhaustive_category_ids``, every category ``frequency``.
        results: as for ``score_coco``.
        iou_type: as for ``score_coco``.
        max_detections: number of detections per image that count, best first.

    Returns:
        A score with ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, ``APr``, ``APc``, ``APf`` (rare, common and
        frequent classes), ``AR@300``, ``ARs@300``, ``ARm@300`` and ``ARl@300``.

    Raises:
        DataError: a file is missing or invalid; the message names the file and the row.
    """
    with reading_ahead(results, iou_type=iou_type, others=ground_truth) as ahead:
        metric = LvisMetric(ground_truth, iou_type=iou_type, max_detections=max_detections)
        return metric.score(read_results(results, metric.truth, iou_type=iou_type, ahead=ahead))


def _precisions(curves: Curves) -> dict[str, float | None]:
    """The AP numbers, averaged over the classes of the curves."""
    precision = curves.precision[..., 0]
    numbers = {
        "AP": mean_defined(precision[..., 0]),
        "AP50": mean_defined(precision[IOU50, ..., 0]),
        "AP75": mean_defined(precision[IOU75, ..., 0]),
    }
    return numbers | {f"AP{size}": mean_defined(precision[..., area]) for size, area in AREAS.items() if size}


def _recalls(curves: Curves, limit: int) -> dict[str, float | None]:
    """The AR numbers, averaged over the classes of the curves."""
    recall = curves.recall[..., 0]
    return {f"AR{size}@{limit}": mean_defined(recall[..., area]) for size, area in AREAS.items()}


def _add_lvis(truth: GroundTruth) -> list[str]:
    """Add the LVIS class lists to the images of ``truth``; return the frequency of every class."""
    for problem in lvis_problems(list(truth.images.values()), list(truth.categories.values())):
        raise DataError(f"{truth.source}: {problem} (plain COCO annotations: detrkit score coco)")
    numbers = truth.category_numbers
    for key, row in truth.images.items():
        image = truth.image(truth.image_numbers[key])
        image |= {word: [numbers[category_id] for category_id in row[word]] for word in (NEGATIVES, NOT_EXHAUSTIVE)}
    return [truth.categories[key]["frequency"] for key in numbers]
