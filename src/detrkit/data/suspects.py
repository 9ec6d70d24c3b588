"""Labels that a model doubts: missing, of the wrong class, loose, or twice, with how sure the disagreement is.

The confidence of a suspect is how sure the model is of what it sees, in the light of how these labels were made:

    missing      p                    nothing is labelled there; p is the chance that the annotators of these images
                                      label what looks so (:mod:`detrkit.data.label_habits`)
    wrong_class  t(s) (1 - own)       another class is found at the label with score s; own is the best score of its own
                                      class there
    loose        t(p) m (1 - own)     an object of its class is found beside the label; m grows from 0 at an IoU of 0.7
                                      to 1 at 0.3; own is the best score of its class within an IoU of 0.6
    duplicate    (IoU - 0.6) / 0.4    two labels of a class where the model finds one object

t(x) = 1 - (1 - x)^2: that a label is not found and that something else is found in its place are two signs, which
together weigh more. One list ranks all kinds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from detrkit.data.label_habits import box_overlaps, labelled_chances, shared_areas
from detrkit.data.records import ImageRecord
from detrkit.structures import Categories, Detections

__all__ = ["Suspect", "SuspectKind", "SuspectRow", "find_suspects", "ranked_suspects"]

SuspectKind = Literal["missing", "wrong_class", "loose", "duplicate"]

LEAST = 0.05  # score of detections that are looked at
_SAME = 0.5  # IoU from which a detection and a label are of one place
_OWN = 0.6  # IoU from which a detection of its class supports the box of a label
_TIGHT, _LOOSE = 0.7, 0.3  # IoU at which a box is good enough, and at which it is certainly loose
_RATHER_LOOSE = 0.5  # doubt of a label beside an object from which the object is not missing but loosely labelled
_BESIDE = 0.1  # least IoU of a loose label with the object
_TWICE = 0.6  # IoU of two labels of one object


class SuspectRow(TypedDict):
    """A suspect in JSON: ``bbox`` is [x, y, width, height] in pixels, of the label, or of what is missing."""

    file_name: str
    kind: SuspectKind
    bbox: list[float]
    category: str
    confidence: float
    image_id: int
    split: str
    suggested_bbox: NotRequired[list[float]]
    suggested_category: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """One label that is doubted, or one that is missing.

    Attributes:
        record: the image.
        kind: what is wrong.
        box: (4,) xyxy in pixels: the label as it is, or what is missing.
        label: its class.
        confidence: from 0 to 1.
        position: of the label among the objects of the record; None for a missing one.
        suggested_box: (4,) where the model sees the object; None: no other place.
        suggested_label: the class that the model sees; None: no other class.
    """

    record: ImageRecord
    kind: SuspectKind
    box: NDArray[np.float64]
    label: int
    confidence: float
    position: int | None = None
    suggested_box: NDArray[np.float64] | None = None
    suggested_label: int | None = None

    def to_json(self, categories: Categories, *, split: str) -> SuspectRow:
        """The row in ``suspects.json``."""
        row: SuspectRow = {
            "file_name": self.record.file_name,
            "kind": self.kind,
            "bbox": _xywh(self.box),
            "category": str(categories[self.label].name),
            "confidence": round(self.confidence, 4),
            "image_id": self.record.image_id,
            "split": split,
        }
        if self.suggested_box is not None:
            row["suggested_bbox"] = _xywh(self.suggested_box)
        if self.suggested_label is not None:
            row["suggested_category"] = str(categories[self.suggested_label].name)
        return row


def ranked_suspects(found: Iterable[tuple[ImageRecord, Detections]], *, least: float = 0.1) -> list[Suspect]:
    """Suspects of all images, the surest first.

    Args:
        found: images and what a model finds in them, with the classes of the data set; low scores too.
        least: confidence of the least suspect that is listed.
    """
    listed = [(record, _looked_at(record, detections)) for record, detections in found]
    chances = labelled_chances(listed)
    every = [
        one
        for (record, detections), own in zip(listed, chances, strict=True)
        for one in find_suspects(record, detections, own)
    ]
    kept = [one for one in every if one.confidence >= least]
    return sorted(kept, key=lambda one: (-one.confidence, one.record.image_id, tuple(one.box.tolist())))


def _looked_at(record: ImageRecord, found: Detections) -> Detections:
    """The detections that are not too unsure, outside crowd regions."""
    found = found[found.scores >= LEAST]
    if record.crowd_boxes.size:
        found = found[_share_inside(found.boxes, record.crowd_boxes) < _SAME]
    return found


def find_suspects(record: ImageRecord, found: Detections, chances: NDArray[np.float64]) -> list[Suspect]:
    """Suspects of one image, in no order; each label and each detection is in one of them at most.

    chances: (D,) how likely the annotators label what each detection has found.
    """
    labels, boxes = record.labels, record.boxes
    overlap = box_overlaps(found.boxes, boxes)
    alike = found.labels[:, None] == labels
    scores = found.scores.astype(np.float64)
    supported = _best(scores, alike & (overlap >= _OWN))
    at_place = _best(scores, alike & (overlap >= _SAME))
    off = ((_TIGHT - overlap) / (_TIGHT - _LOOSE)).clip(0, 1) * (1 - supported)
    best = np.where(alike, overlap, 0.0).max(axis=1, keepdims=True, initial=0.0)
    off[(overlap < _BESIDE) | ~alike | (overlap < best)] = 0  # it belongs to another label
    candidates: list[tuple[Suspect, int]] = []
    for place, score in enumerate(scores):
        box, label, chance = found.boxes[place].astype(np.float64), int(found.labels[place]), float(chances[place])
        if overlap[place].max(initial=0.0) < _SAME and off[place].max(initial=0.0) < _RATHER_LOOSE:
            candidates.append((_missing(record, box, label, chance), place))
        for position in np.flatnonzero((overlap[place] >= _SAME) & ~alike[place]).tolist():
            doubt = _two_signs(score) * (1 - at_place[position])
            candidates.append((_doubted(record, "wrong_class", position, doubt, suggested_label=label), place))
        for position in np.flatnonzero(off[place]).tolist():
            doubt = _two_signs(chance) * off[place, position]
            candidates.append((_doubted(record, "loose", position, doubt, suggested_box=box), place))
    doubts = [pair for pair in candidates if pair[0].confidence > 0]
    return [*_of_each_once(doubts, found), *_duplicates(record, found, overlap)]


def _two_signs(value: float) -> float:
    """The weight of a doubt that is confirmed by what is found instead."""
    return 1 - (1 - value) ** 2


def _missing(record: ImageRecord, box: NDArray[np.float64], label: int, confidence: float) -> Suspect:
    return Suspect(record=record, kind="missing", box=box, label=label, confidence=float(confidence))


def _doubted(
    record: ImageRecord,
    kind: SuspectKind,
    position: int,
    confidence: float,
    *,
    suggested_box: NDArray[np.float64] | None = None,
    suggested_label: int | None = None,
) -> Suspect:
    return Suspect(
        record=record,
        kind=kind,
        box=record.boxes[position],
        label=int(record.labels[position]),
        confidence=float(confidence),
        position=position,
        suggested_box=suggested_box,
        suggested_label=suggested_label,
    )


def _of_each_once(candidates: list[tuple[Suspect, int]], found: Detections) -> list[Suspect]:
    """The surest suspect of each label and each detection; a missing object is found by one detection of any class."""
    labels: set[int] = set()
    taken: list[int] = []
    kept = []
    overlap = box_overlaps(found.boxes, found.boxes)
    # where a label can be doubted, it is rather wrong than its object missing
    for one, place in sorted(candidates, key=lambda pair: (-pair[0].confidence, pair[0].kind == "missing")):
        if one.position in labels or place in taken:
            continue
        if one.kind == "missing" and taken and overlap[place, taken].max() >= _SAME:
            continue
        if one.position is not None:
            labels.add(one.position)
        taken.append(place)
        kept.append(one)
    return kept


def _duplicates(record: ImageRecord, found: Detections, overlap: NDArray[np.float64]) -> list[Suspect]:
    """Pairs of labels of a class for which the model does not find two objects; the later label is doubted."""
    labels, between = record.labels, box_overlaps(record.boxes, record.boxes)
    pairs = np.argwhere(np.triu(between >= _TWICE, 1) & (labels[:, None] == labels))
    suspects = []
    for first, second in pairs.tolist():
        near = (overlap[:, [first, second]] >= _SAME).any(1) & (found.labels == labels[first]) & (found.scores >= 0.3)
        apart = box_overlaps(found.boxes[near], found.boxes[near])
        if len(apart) > 1 and apart.min() < _TWICE:  # two objects, one behind the other
            continue
        doubt = (between[first, second] - _TWICE) / (1 - _TWICE)
        suspects.append(_doubted(record, "duplicate", second, doubt))
    return suspects


def _best(scores: NDArray[np.float64], related: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(G,) the best score of the detections (D, G) that are related to each label; 0 where there is none."""
    found: NDArray[np.float64] = np.where(related, scores[:, None], 0.0).max(axis=0, initial=0.0)
    return found


def _share_inside(boxes: NDArray[np.float32], regions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) the largest part of each box xyxy that lies in one of the regions."""
    own = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).prod(-1)
    shared = shared_areas(boxes, regions) / np.maximum(own, 1e-12)[:, None]
    found: NDArray[np.float64] = shared.max(axis=1, initial=0.0)
    return found


def _xywh(box: NDArray[np.float64]) -> list[float]:
    x1, y1, x2, y2 = (round(float(value), 2) for value in box)
    return [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
