"""Checks of what rows say: values, boxes, names of classes and files, crowds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from detrkit.data.clean_rows import OUTLINE, TEXT, row_problem
from detrkit.data.findings import Finding, finding, row_name
from detrkit.data.listing import posix_name
from detrkit.data.records import Table
from detrkit.structures.categories import spelled_alike

__all__ = ["VALUE_CHECKS", "class_differences"]


def _readings(split: str, table: Table) -> Iterator[Finding]:
    read, outlines = table.readings.get(TEXT, ()), table.readings.get(OUTLINE, ())
    yield finding("warning", "values", split, read, "values that are not as COCO has them, and how they are read")
    yield finding(
        "info", "boxes from outlines", split, outlines, "annotations without bbox: that of the outline is used"
    )


def _empty_lists(split: str, table: Table) -> Iterator[Finding]:
    lists = {"images": table.images, "categories": table.categories}
    yield finding("error", "empty lists", split, [key for key, rows in lists.items() if not rows], "without an entry")


def _unusable(split: str, table: Table) -> Iterator[Finding]:
    boxes: list[str] = []
    others: list[str] = []
    listed = {image["id"] for image in table.images}
    for row in table.annotations:
        problem = row_problem(row)
        if problem is not None and row["image_id"] in listed:  # rows of other images are ignored
            (boxes if problem.startswith("bbox") else others).append(f"{row_name(row)}: {problem}")
    yield finding("error", "box values", split, boxes, "boxes that are not four finite numbers of positive size")
    yield finding("error", "annotation values", split, others, "values of annotations that cannot be read")


def _crowds(split: str, table: Table) -> Iterator[Finding]:
    """Classes of which every box is a crowd region: nothing is trained on."""
    counts = table.counts.classes
    names = {row["id"]: str(row.get("name", row["id"])) for row in table.categories}
    only = [
        f"{name}: {counts[number, True]}"
        for number, name in names.items()
        if (number, True) in counts and (number, False) not in counts
    ]
    message = "classes whose boxes all have iscrowd 1: left out of training, ignored in evaluation"
    if table.counts.crowd_outlines:
        message += "; CVAT writes iscrowd 1 for brush masks: set it to 0 if these are single objects"
    yield finding("warning", "crowd classes", split, only, message)


def _equal_names(split: str, table: Table) -> Iterator[Finding]:
    ids = defaultdict(list)
    for row in table.categories:
        ids[spelled_alike(row.get("name", row["id"]))].append(row)
    equal = [
        " = ".join(f"'{row.get('name')}' (id {row['id']})" for row in rows) for rows in ids.values() if len(rows) > 1
    ]
    yield finding("warning", "class names", split, equal, "several classes have the same name")


def _listed_twice(split: str, table: Table) -> Iterator[Finding]:
    ids = defaultdict(list)
    for image in table.images:
        ids[posix_name(str(image["file_name"]))].append(image["id"])
    twice = [f"{name}: ids {', '.join(map(str, found))}" for name, found in ids.items() if len(set(found)) > 1]
    message = "files under several ids: each has only a part of the boxes, and results cannot be assigned by name"
    yield finding("warning", "files listed twice", split, twice, message)


VALUE_CHECKS: tuple[Callable[[str, Table], Iterator[Finding]], ...] = (
    _empty_lists,
    _readings,
    _unusable,
    _crowds,
    _equal_names,
    _listed_twice,
)
"""Each gives its findings for a split and its table."""


def class_differences(
    first: str, expected: Mapping[int, object], split: str, found: Mapping[int, object]
) -> Iterator[str]:
    """In which classes (names by id) a split differs from the first one."""
    for number in sorted(expected.keys() | found.keys()):
        if number not in found:
            yield f"id {number} '{expected[number]}' is in {first} only"
        elif number not in expected:
            yield f"id {number} '{found[number]}' is in {split} only"
        elif found[number] != expected[number]:
            yield f"id {number} is '{expected[number]}' in {first} and '{found[number]}' in {split}"
