"""From raw outputs to the objects of an image, in numpy: the same as :func:`detrkit.inference.postprocess.select`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrkit.runtime.info import Rules

__all__ = ["Chosen", "chosen_objects", "kept_by_nms"]

_PRE_NMS_TOP_K = 2000  # minimum number of candidates before NMS, as with torch
_ONE_BY_ONE = 4000  # box coordinates above which torchvision suppresses class by class


class Chosen(NamedTuple):
    """Objects of one image, best first: scores (N,), labels (N,), boxes (N, 4) xyxy in [0, 1], queries (N,)."""

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    queries: NDArray[np.int64]

    def take(self, index: NDArray[np.generic]) -> Chosen:
        """The objects that an index selects."""
        return Chosen(self.scores[index], self.labels[index], self.boxes[index], self.queries[index])


def chosen_objects(
    logits: NDArray[np.float32],
    boxes: NDArray[np.float32],
    rules: Rules,
    *,
    usable: NDArray[np.bool_] | None = None,
    wanted: NDArray[np.bool_] | None = None,
    most: int | None = None,
    threshold: float | NDArray[np.float32] | None = None,
) -> Chosen:
    """Choose the objects of one image.

    Args:
        logits: (Q, C).
        boxes: (Q, 4) cxcywh in [0, 1].
        rules: scores, top-k and NMS.
        usable: (K,) classes that exist; None: all.
        wanted: (K,) classes that are asked for; None: all. Top-k counts these alone.
        most: the maximum number of objects, instead of top-k.
        threshold: minimum score, inclusive, of all classes or (K,) of each; None: no limit.
    """
    probability = _scores(logits.astype(np.float32), rules)
    corners = _corners(boxes.astype(np.float32))
    top_k = rules.top_k if most is None else max(most, rules.top_k)
    if wanted is not None and rules.scores == "sigmoid":  # every class has objects of its own
        usable = wanted if usable is None else usable & wanted
    if usable is not None:
        probability = np.where(usable, probability, np.float32(-1))
    if rules.scores == "softmax":
        labels = probability.argmax(1)
        queries = np.arange(len(labels))
    else:
        candidates = top_k if rules.nms is None else max(top_k, _PRE_NMS_TOP_K)
        best = np.argsort(-probability, axis=None, kind="stable")[:candidates]
        queries, labels = np.divmod(best, probability.shape[1])
    found = Chosen(probability[queries, labels], labels.astype(np.int64), corners[queries], queries.astype(np.int64))
    if usable is not None:
        found = found.take(usable[found.labels])
    if wanted is not None:
        found = found.take(wanted[found.labels])
    if rules.nms is not None:
        kept = kept_by_nms(found.boxes, found.scores, found.labels, rules.nms)
        if rules.nms_decay is None:
            found = found.take(kept)
        else:
            lost = np.setdiff1d(np.arange(len(found.scores)), kept)
            found.scores[lost] *= np.float32(rules.nms_decay)
            found = found.take(np.concatenate((kept, lost)))
    elif rules.scores == "softmax":
        found = found.take(np.argsort(-found.scores, kind="stable"))
    found = found.take(np.arange(min(top_k, len(found.scores))))
    if threshold is not None:
        least = threshold[found.labels] if isinstance(threshold, np.ndarray) else np.float32(threshold)
        found = found.take(found.scores >= least)
    return found.take(np.argsort(-found.scores, kind="stable")[:most])


def kept_by_nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64], threshold: float
) -> NDArray[np.int64]:
    """Indices of the boxes (N, 4) xyxy that class-wise suppression keeps, best first.

    As torchvision's ``batched_nms``: of up to 1000 boxes the classes are moved apart, which rounds their coordinates.
    """
    if len(boxes) == 0:
        return np.zeros(0, np.int64)
    if boxes.size > _ONE_BY_ONE:
        parts = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        kept = np.concatenate([part[_suppressed(boxes[part], scores[part], threshold)] for part in parts])
        return kept[np.argsort(-scores[kept], kind="stable")]
    apart = labels.astype(np.float32) * (boxes.max() + np.float32(1))
    return _suppressed(boxes + apart[:, None], scores, threshold)


def _suppressed(boxes: NDArray[np.float32], scores: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Greedy suppression without regard to classes: indices that stay, best first."""
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = boxes[order].T
    area = (x2 - x1) * (y2 - y1)
    alive = np.ones(len(order), np.bool_)
    for index in range(len(order)):
        if not alive[index]:
            continue
        rest = slice(index + 1, None)
        width = np.maximum(np.minimum(x2[index], x2[rest]) - np.maximum(x1[index], x1[rest]), np.float32(0))
        height = np.maximum(np.minimum(y2[index], y2[rest]) - np.maximum(y1[index], y1[rest]), np.float32(0))
        shared = width * height
        with np.errstate(invalid="ignore", divide="ignore"):
            alive[rest] &= ~(shared / (area[index] + area[rest] - shared) > threshold)
    return order[alive]


def _scores(logits: NDArray[np.float32], rules: Rules) -> NDArray[np.float32]:
    if rules.scores == "sigmoid":
        with np.errstate(over="ignore"):
            return np.float32(1) / (np.float32(1) + np.exp(-logits))
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return (shifted / shifted.sum(-1, keepdims=True))[:, :-1]


def _corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    centre, half = boxes[:, :2], np.float32(0.5) * boxes[:, 2:]
    return np.concatenate((centre - half, centre + half), axis=1)
