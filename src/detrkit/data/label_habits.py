"""How likely the annotators of a set of images label what a model has found.

Some sets leave objects out by habit: those that overlap or are cut off, or all but a few in some images. A detection
without a label is then no surprise. The chance that a detection has a label is a logistic regression on the set itself,
with coefficients of its own for each class, of

    the logit of the score, and how much it exceeds that of labelled objects of its class in the image; whether the box
    touches the edge of the image, its IoU with another detection, the part of it that another one covers; and how
    completely the rest of the image is labelled: log (1 + labelled) / (0.3 + not labelled), where other detections
    count by their own chance

fitted twice: at first other detections count by their score. A class of which nothing that is found has a label shows
no habit: its chance is the score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detrkit.data.records import ImageRecord
from detrkit.structures import Detections

__all__ = ["box_overlaps", "labelled_chances", "shared_areas"]

_SAME = 0.5  # IoU from which a detection and a label, or two detections, are of one object
_LEAST = 0.2  # score from which a detection counts at first
_PRIOR = 1.0  # ridge: with few detections of a class the chance follows the mean
_STEPS = 30  # of Newton's method, at most
_PASSES = 2


def labelled_chances(found: Sequence[tuple[ImageRecord, Detections]]) -> list[NDArray[np.float64]]:
    """For every image the chances (D,) of its detections to be labelled; 0 where a better one is at the same place.

    found: images and detections in them, best first.
    """
    first = [_first_of_its_object(detections) for _, detections in found]
    chances = [np.zeros(len(detections)) for _, detections in found]
    own = _chances([(record, one[mask]) for (record, one), mask in zip(found, first, strict=True)])
    for values, mask, chance in zip(chances, first, own, strict=True):
        values[mask] = chance
    return chances


def _chances(found: Sequence[tuple[ImageRecord, Detections]]) -> list[NDArray[np.float64]]:
    """The chances of detections of which no two are of one object."""
    counts = [len(detections) for _, detections in found]
    if not sum(counts):
        return [np.zeros(0) for _ in counts]
    image = np.repeat(np.arange(len(counts)), counts)
    classes = np.concatenate([detections.labels for _, detections in found])
    scores = np.concatenate([detections.scores for _, detections in found]).astype(np.float64)
    looks = np.concatenate([_looks(record, detections) for record, detections in found])
    labelled = np.concatenate([_has_label(record, detections) for record, detections in found])
    looks = np.column_stack((looks, _above_labelled(looks[:, 0], image, classes, labelled)))
    weight = np.where(scores >= _LEAST, scores, 0.0)
    for _ in range(_PASSES):
        has, lacks = (_of_others(weight * part, image) for part in (labelled, ~labelled))
        weight = _fitted(np.column_stack((looks, np.log((1 + has) / (0.3 + lacks)))), classes, labelled)
    weight = np.where(np.isin(classes, classes[labelled]), weight, scores)
    return np.split(weight, np.cumsum(counts)[:-1])


def _fitted(
    features: NDArray[np.float64], classes: NDArray[np.int64], labelled: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(D,) the chance of each detection by a logistic regression for each class."""
    spread = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    plain = np.column_stack((np.ones(len(scaled)), scaled))
    chances = np.zeros(len(scaled))
    for label in np.unique(classes):
        own = classes == label
        inputs, wanted = plain[own], labelled[own].astype(np.float64)
        weights = np.zeros(plain.shape[1])
        for _ in range(_STEPS):
            expected = _sigmoid(inputs @ weights)
            slope = inputs.T @ (wanted - expected) - _PRIOR * weights
            curve = (inputs * (expected * (1 - expected))[:, None]).T @ inputs + _PRIOR * np.eye(len(weights))
            step = np.linalg.solve(curve, slope)
            weights += step
            if np.abs(step).max() < 1e-6:
                break
        chances[own] = _sigmoid(inputs @ weights)
    return chances


def _looks(record: ImageRecord, found: Detections) -> NDArray[np.float64]:
    """(D, 4) what the chance depends on in one image."""
    boxes, scores = found.boxes.astype(np.float64), found.scores.astype(np.float64).clip(1e-6, 1 - 1e-6)
    sides = boxes[:, 2:] - boxes[:, :2]
    to_edge = np.minimum(boxes[:, :2], np.array([record.width, record.height]) - boxes[:, 2:]).min(axis=1)
    cut = to_edge < 0.03 * np.sqrt(sides.prod(axis=1))
    overlap = box_overlaps(boxes, boxes)
    other = (overlap < _SAME) & (scores >= 0.3)  # another object
    near = (overlap * other).max(axis=1, initial=0.0)
    shares = shared_areas(boxes, boxes) / np.maximum(sides.prod(axis=1), 1e-9)[:, None]
    covered = (shares * other).max(axis=1, initial=0.0)
    return np.column_stack((np.log(scores / (1 - scores)), cut, near, covered))


def _above_labelled(
    values: NDArray[np.float64], image: NDArray[np.int64], classes: NDArray[np.int64], labelled: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(D,) the logit of each score minus the mean of other labelled detections of its image and class.

    Images with few of them lean on the mean of the class in all images.
    """
    group = image * (int(classes.max()) + 1) + classes
    number = _of_others(labelled.astype(np.float64), group)
    total = _of_others(values * labelled, group)
    everywhere = np.bincount(classes, values * labelled) / np.maximum(np.bincount(classes, labelled), 1)
    mean: NDArray[np.float64] = (total + 2 * everywhere[classes]) / (number + 2)
    return values - mean


def _has_label(record: ImageRecord, found: Detections) -> NDArray[np.bool_]:
    """(D,) whether there is a label of any class at the place of each detection."""
    labelled: NDArray[np.bool_] = box_overlaps(found.boxes, record.boxes).max(axis=1, initial=0.0) >= _SAME
    return labelled


def _first_of_its_object(found: Detections) -> NDArray[np.bool_]:
    """(D,) whether no better detection of any class is at the same place."""
    overlap = box_overlaps(found.boxes, found.boxes)
    kept: list[int] = []
    for place in range(len(found)):
        if not kept or overlap[place, kept].max() < _SAME:
            kept.append(place)
    return np.isin(np.arange(len(found)), kept)


def _of_others(values: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """(D,) the sum of the values of the other detections of the same group."""
    others: NDArray[np.float64] = np.bincount(group, values)[group] - values
    return others


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1 / (1 + np.exp(-values.clip(-50, 50)))
    return found


def shared_areas(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, M) area that boxes xyxy share."""
    a, b = first.reshape(-1, 1, 4).astype(np.float64), second.reshape(1, -1, 4).astype(np.float64)
    shared: NDArray[np.float64] = (
        (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0).prod(-1)
    )
    return shared


def box_overlaps(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, M) IoU of boxes xyxy."""
    shared = shared_areas(first, second)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first.reshape(-1, 4), second.reshape(-1, 4))]
    found: NDArray[np.float64] = shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-12)
    return found
