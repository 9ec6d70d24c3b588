"""Scores of class maps by their pixels: IoU and accuracy of each class, and their means.

A class that occurs in no ground truth has no score and is not in the means; pixels that are taken for it still count
against the class they belong to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from detrkit.errors import DataError
from detrkit.metrics.cityscapes_files import NoLabelImagesError, matching_results
from detrkit.metrics.cityscapes_maps import CLASSES, found_classes, true_classes
from detrkit.metrics.coco_files import unique_names
from detrkit.metrics.protocol import AnnotatedData, PerImageMetric
from detrkit.metrics.score import Numbers, Score
from detrkit.metrics.semantic_files import class_values, matching_files, values_of_results
from detrkit.side_by_side import in_threads
from detrkit.structures import Categories, SemanticMap

__all__ = ["ReadMap", "SemanticData", "SemanticMetric", "score_semantic"]

Counts = NDArray[np.int64]
ReadMap = Callable[[int], SemanticMap]
"""Gives the ground truth of an image; its pixels without a class do not count."""


@runtime_checkable
class SemanticData(AnnotatedData, Protocol):
    """What this protocol takes from a data set."""

    def semantic_ground_truth(self) -> tuple[Categories, ReadMap]:
        """The classes, and what gives the map of an image."""


class SemanticMetric(PerImageMetric[SemanticMap, Counts]):
    """Mean IoU (mIoU), IoU weighted by frequency (fwIoU), mean accuracy (mAcc) and accuracy of all pixels (aAcc).

    Of each image it keeps the entries of its confusion matrix that are not 0. Ground truth is read when its image is
    met.

    Args:
        categories: the classes in label order.
        read: gives the ground truth of an image id.
    """

    protocol = "semantic"
    headline = ("mIoU", "fwIoU", "aAcc")
    class_columns = ("IoU", "Acc")

    def __init__(self, categories: Categories, read: ReadMap) -> None:
        super().__init__()
        self.categories, self._read = categories, read

    @classmethod
    def of(cls, data: AnnotatedData) -> Self:
        """Mean IoU on these data."""
        if not isinstance(data, SemanticData):
            raise DataError("the data have no class maps: give a folder of PNG masks and their classes")
        return cls(*data.semantic_ground_truth())

    def extract(self, image_id: int, found: SemanticMap) -> Counts:
        """(N, 2): a place in the confusion matrix and the number of its pixels.

        Raises:
            DataError: the map has not the size of the ground truth.
            ValueError: the map is of other classes.
        """
        if found.categories.ids != self.categories.ids:
            raise ValueError(f"image {image_id}: the map is of other classes than the ground truth")
        return _count(self._read(image_id), found, f"image {image_id}")

    def compute(self) -> Score:
        """The score of all that it was told since the last reset."""
        return _score(self.extracts.values(), self.categories)


def score_semantic(
    ground_truth: str | Path,
    results: str | Path,
    classes: str | Path | Sequence[str] | Mapping[str, object] | None = None,
    *,
    ignore: int | None = None,
) -> Score:
    """Mean IoU of a folder of class maps against another, and IoU and accuracy of each class.

    Args:
        ground_truth: folder of PNG files whose values are classes: gray of 8 or 16 bits, or palette indices; or
            Cityscapes' ``gtFine`` or one of its splits.
        results: likewise, with the same relative paths; further endings such as in ``photo.jpg.png`` are allowed. The
            classes of the folder ``semantic`` of ``detrkit predict`` are matched by name.
        classes: a JSON file or its content: a list of names; ``{"0": "name", …}``; a list of ``{"id": …, "name": …}``,
            whose ids are the values in the files; or one of these under ``names``, ``classes`` or ``categories``. None:
            those of Cityscapes, whose rules then hold: results are label images ``<city>_<sequence>_<frame>*.png``, and
            a class that is found where another one is counts even if it occurs nowhere.
        ignore: value of pixels of the ground truth that do not count; None: ``ignore_index`` of the classes, else 255
            where that is no class. In results it stands for pixels without a class, which are wrong.

    Raises:
        DataError: a file is missing or is not what it should be, or holds a value that is no class; the message names
            it.
    """
    if classes is None:
        return _score_cityscapes(Path(ground_truth), Path(results))
    values = class_values(classes, ignore)
    found = values_of_results(Path(results), values)
    pairs = matching_files(Path(ground_truth), Path(results))

    def count(path: Path) -> Counts:
        return _count(values.truth(path), found.found(pairs[path]), str(pairs[path]))

    return _score(in_threads(count, pairs), values.categories)


def _score_cityscapes(ground_truth: Path, results: Path) -> Score:
    try:
        pairs = matching_results(ground_truth, results, ".png")
    except NoLabelImagesError as error:
        raise DataError(f"{error}; class maps of other data need --classes, which names their classes") from error

    def count(path: Path) -> Counts:
        return _count(true_classes(path), found_classes(pairs[path]), str(pairs[path]))

    return _score(in_threads(count, pairs), CLASSES, found_alone=True)


def _count(truth: SemanticMap, found: SemanticMap, where: str) -> Counts:
    """The non-zero entries of the confusion matrix (classes, classes + 1) of one image; the last column: no class."""
    if truth.labels.shape != found.labels.shape:
        (height, width), (true_height, true_width) = found.labels.shape, truth.labels.shape
        raise DataError(
            f"{where}: is {width}x{height} pixels, but its ground truth is {true_width}x{true_height}"
            f"{f' ({truth.path})' if truth.path else ''}; maps must have the size of their image"
        )
    classes = len(truth.categories)
    # The value for no class is the largest of its type, which becomes row and column ``classes``.
    place = np.minimum(truth.labels, classes).astype(np.int64)
    place *= classes + 1
    place += np.minimum(found.labels, classes)
    pixels = np.bincount(place.reshape(-1))[: classes * (classes + 1)]  # without that row
    seen = np.flatnonzero(pixels)
    return np.stack([seen, pixels[seen]], axis=1)


def _score(counts: Iterable[Counts], categories: Categories, *, found_alone: bool = False) -> Score:
    """Numbers of the counts of images.

    found_alone: whether classes that occur in no ground truth, but are found, have an IoU (0), as in Cityscapes.
    """
    classes = len(categories)
    entries = np.zeros(classes * (classes + 1), dtype=np.int64)
    for rows in counts:
        entries[rows[:, 0]] += rows[:, 1]
    matrix = entries.reshape(classes, classes + 1)
    hits, true, found = np.diag(matrix), matrix.sum(axis=1), matrix[:, :classes].sum(axis=0)
    occurs = true > 0
    rated = occurs | (found > 0) if found_alone else occurs
    names = unique_names([(category.id, category.name) for category in categories])
    if occurs.sum() == 1:
        warnings.warn(
            f"all counted pixels of the ground truth are '{names[int(occurs.argmax())]}', so that a map of this class "
            "alone has mIoU 1; is another class, such as the background, missing or ignored?",
            stacklevel=3,
        )
    iou = hits / np.maximum(true + found - hits, 1)
    accuracy = hits / np.maximum(true, 1)
    metrics: dict[str, float | None] = {"mIoU": None, "fwIoU": None, "mAcc": None, "aAcc": None}
    if occurs.any():
        metrics = {
            "mIoU": float(iou[rated].mean()),
            "fwIoU": float((iou * true).sum() / true.sum()),
            "mAcc": float(accuracy[occurs].mean()),
            "aAcc": float(hits.sum() / true.sum()),
        }
    per_class: dict[str, Numbers] = {
        name: {"IoU": float(one) if has_iou else None, "Acc": float(other) if seen else None}
        for name, one, other, seen, has_iou in zip(names, iou, accuracy, occurs, rated, strict=True)
    }
    return Score(SemanticMetric.protocol, "segm", metrics, per_class, SemanticMetric.headline, pixels=matrix)
