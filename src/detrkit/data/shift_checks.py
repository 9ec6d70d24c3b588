"""Whether the labels of two splits number their classes alike, by what boxes of each class look like.

Ids that are off by one in one of the files are valid ids: no other check sees them. But boxes of a class have sizes and
shapes of their own, and their share of all boxes, and both differ from those of the next class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from detrkit.data.clean_rows import row_problem
from detrkit.data.findings import Finding, finding
from detrkit.data.records import Table

__all__ = ["shifted_classes"]

_SAMPLE = 20_000  # boxes of a split that are looked at
_LEAST = 30  # boxes of the smaller split
_GAIN = 0.5  # nats a box by which the shifted reading is likelier, and …
_SHAPE_GAIN = 0.15  # … of sizes and shapes alone: shares of classes may differ between sound splits
_SPREAD = 0.1  # least standard deviation of the logarithms: a class may have three boxes
_WEIGHT = 3  # boxes of all classes that count for each class, for the same reason

Boxes = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Places of the classes in the list of ids (N,), and logarithms of size and shape (N, 2)."""


def shifted_classes(tables: Mapping[str, Table]) -> list[Finding]:
    """A warning where boxes of a split look like those of the training split only when their ids are shifted by one."""
    if "train" not in tables:
        return []
    ids = sorted(row["id"] for row in tables["train"].categories)
    train = _boxes(tables["train"], ids)
    found = []
    for split, table in tables.items():
        if split == "train" or len(ids) < 2 or sorted(row["id"] for row in table.categories) != ids:
            continue  # other lists are another finding
        found.append(finding("warning", "class ids", split, _reading(train, _boxes(table, ids), len(ids)), _MESSAGE))
    return found


_MESSAGE = "boxes look like those of the next class in the training labels: ids that are off by one?"


def _reading(train: Boxes, other: Boxes, classes: int) -> list[str]:
    """In words, how the ids have to be shifted; empty where they need not."""
    if min(len(train[0]), len(other[0])) < _LEAST:
        return []
    labels, rows = other[0], np.arange(len(other[0]))
    shares, shapes = _likelihoods(train[1], train[0], other[1], classes)
    for shift in (1, -1):
        moved = (labels + shift) % classes
        shape = float((shapes[rows, moved] - shapes[rows, labels]).mean())
        share = float((shares[moved] - shares[labels]).mean())
        if shape >= _SHAPE_GAIN and shape + share >= _GAIN:
            word = "the id after" if shift == 1 else "the id before"
            return [f"{len(rows)} boxes fit {word} theirs, by {shape + share:.1f} nats a box"]
    return []


def _likelihoods(
    shapes: NDArray[np.float64], labels: NDArray[np.int64], others: NDArray[np.float64], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(K,) log shares of the classes, and (N, K) log densities of other boxes as boxes of each class."""
    mean, spread = shapes.mean(axis=0), shapes.std(axis=0) + _SPREAD
    counts = np.bincount(labels, minlength=classes)
    density = np.empty((len(others), classes))
    for label in range(classes):
        own = shapes[labels == label]
        weight = len(own) / (len(own) + _WEIGHT)
        middle = weight * own.mean(axis=0) + (1 - weight) * mean if len(own) else mean
        wide = np.maximum(weight * own.std(axis=0) + (1 - weight) * spread, _SPREAD) if len(own) else spread
        normal = -(((others - middle) / wide) ** 2) / 2 - np.log(wide) - math.log(2 * math.pi) / 2
        density[:, label] = np.maximum(normal, -8.0).sum(axis=1)  # a few odd boxes must not decide
    return np.log((counts + 1) / (counts.sum() + classes)), density


def _boxes(table: Table, ids: Sequence[int]) -> Boxes:
    places = {number: place for place, number in enumerate(ids)}
    sizes = table.sizes
    step = max(1, len(table.annotations) // _SAMPLE)
    labels, shapes = [], []
    for number, row in enumerate(table.annotations):
        place = places.get(row["category_id"])
        if number % step or place is None or row_problem(row) is not None or row.get("iscrowd"):
            continue
        width, height = sizes.get(row["image_id"], (None, None))
        if width and height:
            w, h = row["bbox"][2:]
            labels.append(place)
            shapes.append((math.log(w * h / (width * height)) / 2, math.log(w / h)))
    return np.array(labels, dtype=np.int64), np.array(shapes, dtype=np.float64).reshape(-1, 2)
