"""Checks of what occurs twice: ids, and boxes of the same class.

A file may have millions of annotations, so that ids and boxes are remembered as numbers of a few bytes.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from detrkit.data.coco_json import Row
from detrkit.data.findings import Finding, finding, row_name
from detrkit.data.records import Table

__all__ = ["duplicate_annotations", "id_findings"]


def id_findings(split: str, table: Table) -> Iterator[Finding]:
    """Ids that occur twice, and annotations of images that are not listed."""
    images = _duplicates(row["id"] for row in table.images)
    categories = _duplicates(row["id"] for row in table.categories)
    annotations = _repeated_ids(table.annotations)
    yield finding("error", "image ids", split, images, "occur twice in images")
    yield finding("error", "category list", split, categories, "ids occur twice")
    yield finding("warning", "annotation ids", split, annotations, "occur twice")
    known = {row["id"] for row in table.images}
    lost = table.counts.images - known
    orphans = [row_name(row) for row in table.annotations if row["image_id"] in lost] if lost else []
    yield finding("warning", "annotation images", split, orphans, "annotations of images that are not listed: ignored")


def _repeated_ids(rows: Sequence[Row]) -> list[str]:
    """The ids that annotations share. Those of most files are whole numbers of 64 bits, which need few bytes each."""
    ids, others = array("q"), list[object]()
    for row in rows:
        number = row.get("id")
        if type(number) is int and abs(number) < 2**63:
            ids.append(number)
        else:
            others.append(number)
    if others:
        return _duplicates(row.get("id") for row in rows)
    values, places, counts = np.unique(np.asarray(ids), return_index=True, return_counts=True)
    repeated = counts > 1
    return [str(value) for value in values[repeated][np.argsort(places[repeated])].tolist()]


def _duplicates(values: Iterable[object]) -> list[str]:
    return [str(value) for value, number in Counter(values).items() if number > 1 and value is not None]


def duplicate_annotations(split: str, table: Table) -> Iterator[Finding]:
    """Annotations with the class and box of another one."""
    keys = array("q", (hash(_class_and_box(row)) for row in table.annotations))
    values, counts = np.unique(np.asarray(keys), return_counts=True)
    suspects = set(values[counts > 1].tolist())  # few: of them alone the boxes are kept
    seen: set[tuple[int, int, str]] = set()
    repeated = []
    for row, number in zip(table.annotations, keys, strict=True) if suspects else ():
        if number in suspects:
            key = _class_and_box(row)
            if key in seen:
                repeated.append(row_name(row))
            seen.add(key)
    yield finding("warning", "duplicate boxes", split, repeated, "annotations with the class and box of another one")


def _class_and_box(row: Row) -> tuple[int, int, str]:
    return row["image_id"], row["category_id"], str(row.get("bbox"))
