"""Annotation files with spoilt values: check, training, conversion and scores keep, leave out and refuse the same.

``DETRKIT_MUTATIONS=5000 pytest tests/data/test_mutated_files.py`` tries more of them than the tests of every day do.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detrkit.data import load_dataset
from detrkit.data.convert import to_coco, usable_part
from detrkit.data.doctor import Report, check
from detrkit.data.formats import find_source, find_sources, read_source
from detrkit.data.ground_truth import annotation_rows
from detrkit.errors import DataError
from detrkit.metrics import score_panoptic
from detrkit.metrics.coco import CocoMetric
from detrkit.metrics.lvis import LvisMetric
from tests.data import trees

EXAMPLES = int(os.environ.get("DETRKIT_MUTATIONS", "200"))  # of all tests here together
MISSING = object()
VALUES = [None, "text", "7", "", "NaN", math.nan, math.inf, 1e300, 10**400, -1, 0, 1.5, 3.0, True, [], [1], {}, MISSING]
TEXTS = ["", "text", "nan", "inf", "1e300", "9" * 5000, "-1", "[1]", "1.5", "\x00", MISSING]

# Findings of a check that say why a file is refused; the others are warnings, or about images and masks.
REFUSING = {
    "annotation values",
    "box values",
    "category ids",
    "category list",
    "empty lists",
    "image files",
    "image ids",
    "label files",
    "label rows",
    "LVIS lists",
}

# Why training refuses a file that a score takes: a score opens no image, and counts boxes without area as missed.
NOT_OF_SCORES = re.compile(
    "'file_name'|image file missing|found none of its images|no positive|lists no images|no categories|not an LVIS"
    "|has no annotation"
)

Rows = Counter[tuple[object, ...]]


@dataclass(frozen=True)
class Outcome:
    """What a reader of a split did with it: the rows it kept, or why it refused the file."""

    rows: Rows | None
    error: str = ""


def outcome(read: Callable[[], Mapping[str, Any]]) -> Outcome:
    """The rows of COCO content as tuples; any exception but DataError fails the test."""
    try:
        content = read()
    except DataError as error:
        return Outcome(None, str(error))
    tuples = (
        (
            row["image_id"],
            row["category_id"],
            tuple(round(float(value), 2) for value in row["bbox"]),  # as conversion writes it
            round(float(row["area"]), 2),
            int(row["iscrowd"]),
        )
        for row in content["annotations"]
    )
    return Outcome(Counter(tuples))


def loaded(root: Path, on_error: Any, task: str = "det") -> Outcome:
    def read() -> Mapping[str, Any]:
        dataset = load_dataset(root, split="train", on_error=on_error, task=task)
        records = [replace(record, segments=replace(record.segments, masks=None)) for record in dataset.records]
        return {"annotations": [row for one in records for row in annotation_rows(one, dataset.categories.ids)]}

    return outcome(read)


def converted(root: Path, on_error: Any) -> Outcome:
    def read() -> Mapping[str, Any]:
        table, _ = usable_part(read_source(find_source(root, "train")), on_error=on_error)
        content = to_coco(table)
        json.dumps(content)
        return content

    return outcome(read)


def scored(path: Path, iou_type: Any = "bbox") -> Outcome:
    """The ground truth as a score reads it, with the ids of the file."""

    def read() -> Mapping[str, Any]:
        metric = LvisMetric if path.name.startswith("lvis") else CocoMetric
        truth = metric(path, iou_type=iou_type).truth
        images = {number: key for key, number in truth.image_numbers.items()}
        categories = {number: key for key, number in truth.category_numbers.items()}
        return {
            "annotations": [
                {"area": 0.0, **row, "image_id": images[row["image_id"]], "category_id": categories[row["category_id"]]}
                for row in truth.dataset["annotations"]
            ]
        }

    return outcome(read)


def checked(root: Path) -> Report | str:
    try:
        return check(find_sources(root))
    except DataError as error:
        return str(error)


def refusals(report: Report | str) -> int:
    """How many faults refuse the train split."""
    if isinstance(report, str):
        return 1
    if not any(found.split == "train" for found in report.findings):
        return 1
    return sum(
        found.count
        for found in report.findings
        if found.level == "error" and found.check in REFUSING and found.split == "train"
    )


def agree(root: Path) -> Report | str:
    """Check, training and conversion agree on the train split."""
    report, strict = checked(root), loaded(root, "raise")
    assert (strict.rows is None) == bool(refusals(report)), (report, strict)
    assert (converted(root, "raise").rows is None) == (strict.rows is None), strict
    if strict.rows is not None:
        assert converted(root, "raise") == strict
    lenient = loaded(root, "skip")
    assert converted(root, "skip").rows == lenient.rows, lenient
    if strict.rows is not None:
        assert lenient == strict
    return report


# --- JSON -------------------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in JSON content."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def spoilt(content: Any, changes: list[tuple[int, object]]) -> Any:
    """The content with values replaced at places that the numbers choose."""
    content = json.loads(json.dumps(content))
    for number, value in changes:
        every = list(places(content))
        if not every:
            break
        *path, last = every[number % len(every)]
        inner = content
        for key in path:
            inner = inner[key]
        if value is MISSING:
            del inner[last]
        else:
            inner[last] = deepcopy(value)
    return content


def with_outlines(content: dict[str, Any]) -> None:
    """Polygons for all annotations, and for the last one an RLE and no box."""
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    x, y, w, h = content["annotations"][-1].pop("bbox")
    height = trees.SIZE[1]
    runs = [x * height + y, *[h, height - h] * (w - 1), h]
    row["segmentation"] = {"size": [height, trees.SIZE[0]], "counts": [*runs, height * trees.SIZE[0] - sum(runs)]}


def coco_tree(root: Path) -> Path:
    trees.coco_tree(root)
    trees.edit(root / "annotations" / "instances_train.json", with_outlines)
    return root


JSON_TREES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "coco": (coco_tree, "annotations/instances_train.json"),
    "roboflow": (trees.roboflow_tree, "train/_annotations.coco.json"),
    "lvis": (trees.lvis_tree, "annotations/lvis_v1_train.json"),
}

changes = st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(VALUES)), min_size=1, max_size=2)
often = settings(
    max_examples=max(1, EXAMPLES // 4),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def json_roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, (make, _) in JSON_TREES.items()}


@pytest.mark.filterwarnings("ignore")
@often
@given(name=st.sampled_from(sorted(JSON_TREES)), changes=changes)
def test_coco_files_with_spoilt_values(
    json_roots: dict[str, Path], name: str, changes: list[tuple[int, object]]
) -> None:
    root, path = json_roots[name], json_roots[name] / JSON_TREES[name][1]
    original = path.read_text()
    try:
        path.write_text(json.dumps(spoilt(json.loads(original), changes)))
        report, strict, score = agree(root), loaded(root, "raise"), scored(path)
        if not NOT_OF_SCORES.search(strict.error):
            assert (score.rows is None) == (strict.rows is None), (score.error, strict.error)
        if score.rows is not None and strict.rows is not None:
            assert score.rows == strict.rows
        masks, mask_score = loaded(root, "raise", "inst"), scored(path, "segm")
        if strict.rows is not None and name == "coco" and "polygons need the image's" not in mask_score.error:
            assert (masks.rows is None) == (mask_score.rows is None), (masks.error, mask_score.error)
        assert isinstance(report, str | Report)
    finally:
        path.write_text(original)


# --- COCO panoptic ----------------------------------------------------------------------------------------------------


OF_PNG_FILES = re.compile("does not fit|no such PNG|masks must have the size|cannot be read")
"""Conversion reads the PNG files at once, training with the images."""


@pytest.fixture(scope="module")
def panoptic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.panoptic_tree(tmp_path_factory.mktemp("panoptic"))


@pytest.mark.filterwarnings("ignore")
@often
@given(changes=changes)
def test_panoptic_files_with_spoilt_values(panoptic_root: Path, changes: list[tuple[int, object]]) -> None:
    """A score compares areas with the PNG files, so it may refuse more; it does not read boxes."""
    path = panoptic_root / "annotations" / "panoptic_train.json"
    original = path.read_text()
    try:
        path.write_text(json.dumps(spoilt(json.loads(original), changes)))
        report, strict = checked(panoptic_root), loaded(panoptic_root, "raise", "pan")
        assert strict.rows is not None or isinstance(report, str) or report.failed, strict
        converts = converted(panoptic_root, "raise"), converted(panoptic_root, "skip")
        if not any(OF_PNG_FILES.search(one.error) for one in converts):
            assert (converts[0].rows is None) == (strict.rows is None), strict
            kept = loaded(panoptic_root, "skip", "pan").rows
            assert (converts[1].rows is None) == (kept is None), converts
            assert converts[1].rows is None or converts[1].rows <= kept  # without images whose PNG is missing
        try:
            score_panoptic(path, path)
        except DataError:
            pass
        else:
            assert strict.rows is not None or NOT_OF_SCORES.search(strict.error) or "bbox" in strict.error, strict
    finally:
        path.write_text(original)


# --- text files: YOLO and VOC -----------------------------------------------------------------------------------------


def without(text: str, match: re.Match[str], value: object) -> str:
    """The text with another value in place of a match, or without it."""
    return text[: match.start()] + ("" if value is MISSING else str(value)) + text[match.end() :]


TEXT_TREES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "yolo": (trees.yolo_tree, "labels/train/*.txt", r"\S+"),
    "voc": (trees.voc_tree, "Annotations/*.xml", r"(?<=>)[^<>]+(?=<)"),
}


@pytest.fixture(scope="module")
def text_roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, (make, *_) in TEXT_TREES.items()}


@pytest.mark.filterwarnings("ignore")
@often
@given(name=st.sampled_from(sorted(TEXT_TREES)), place=st.integers(0, 10**6), value=st.sampled_from(TEXTS))
def test_text_files_with_spoilt_values(text_roots: dict[str, Path], name: str, place: int, value: object) -> None:
    _, files, pattern = TEXT_TREES[name]
    everything = [
        (path, match)
        for path in sorted(text_roots[name].glob(files))
        for match in re.finditer(pattern, path.read_text(encoding="utf-8"))
    ]
    path, match = everything[place % len(everything)]
    original = path.read_text(encoding="utf-8")
    try:
        path.write_text(without(original, match, value), encoding="utf-8")
        agree(text_roots[name])
    finally:
        path.write_text(original, encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
@often
@given(changes=changes)
def test_data_yaml_with_spoilt_values(text_roots: dict[str, Path], changes: list[tuple[int, object]]) -> None:
    path = text_roots["yolo"] / "data.yaml"
    original = path.read_text(encoding="utf-8")
    try:
        content = spoilt({"train": "images/train", "val": "images/val", "nc": 2, "names": ["bolt", "nut"]}, changes)
        path.write_text(json.dumps(content), encoding="utf-8")
        agree(text_roots["yolo"])
    finally:
        path.write_text(original, encoding="utf-8")
