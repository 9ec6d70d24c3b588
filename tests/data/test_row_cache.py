"""Cached annotations are those of the file, and a cache that is old, damaged or off is none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.data import row_cache
from detrkit.data.annotated_images import AnnotatedImages
from detrkit.data.formats import coco, find_source
from detrkit.data.open import load_source
from detrkit.data.row_cache import cache_key

ROWS: list[dict[str, Any]] = [
    {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2.5, 9, 9.0], "area": 81, "iscrowd": 0, "note": "x"},
    {"id": 6, "image_id": 2, "category_id": 2, "bbox": [1.25, 2, 30, 9], "area": 7.5, "iscrowd": 1},
    {"id": 7, "image_id": 2, "category_id": 2, "bbox": [500, 500, 9, 9], "area": 81.0, "iscrowd": 0},
]
OUTLINES = [[[1, 2, 10, 2, 10, 11]], {"size": [40, 60], "counts": [100, 50, 2250]}, [[1, 1, 9, 1, 9, 9, 1, 9.5]]]


@pytest.fixture(params=["det", "inst"])
def task(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(row_cache, "_WORTH", 0)
    return str(request.param)


def write(root: Path, rows: list[dict[str, Any]]) -> Path:
    (root / "images" / "train").mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in (1, 2)]
    for image in images:
        Image.new("RGB", (60, 40)).save(root / "images" / "train" / str(image["file_name"]))
    (root / "annotations").mkdir(exist_ok=True)
    path = root / "annotations" / "instances_train.json"
    rows = [{**row, "segmentation": outline} for row, outline in zip(rows, OUTLINES, strict=False)]
    categories = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut", "extra": {"a": [1]}}]
    path.write_text(json.dumps({"info": {"year": 1}, "images": images, "annotations": rows, "categories": categories}))
    return root


def load(root: Path, task: str) -> AnnotatedImages:
    return load_source(find_source(root, "train"), task=task, on_error="skip")


def content(data: AnnotatedImages) -> list[object]:
    found: list[object] = [data.categories, data.load_errors]
    for record in data.records:
        segments = record.segments
        masks = None
        if segments.masks is not None:
            masks = [segments.masks.packed(place) for place in range(len(segments))]
        columns = (segments.boxes, segments.labels, segments.areas, segments.crowd, segments.outside, segments.things)
        found += [record.image_id, record.path, [column.tolist() for column in columns], masks]
    return found


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "annotations").glob("*"))


def test_the_second_reading_gives_the_same_and_parses_nothing(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "data", ROWS)
    fresh = coco.read(find_source(root, "train"))
    first = content(load(root, task))
    assert len(cached(tmp_path)) == 1
    monkeypatch.setattr(coco, "read_json", None)
    monkeypatch.setattr(coco, "RowFile", None)
    assert content(load(root, task)) == first
    source = find_source(root, "train")
    table, _ = row_cache.recall(cache_key(source.annotations, "none" if task == "det" else "packed") or ""), None
    assert table is not None
    rows = [{key: value for key, value in row.items() if key != "segmentation"} for row in table[1]]
    plain = [{key: row[key] for key in row if key not in ("segmentation", "note")} for row in fresh.annotations]
    assert json.dumps(rows, sort_keys=True) == json.dumps(plain, sort_keys=True), "whole numbers stay whole"
    assert table[1][-1] == list(table[1])[-1]
    assert table[1][:2] == list(table[1])[:2]


def test_a_changed_file_is_read_anew(task: str, tmp_path: Path) -> None:
    root = write(tmp_path / "data", ROWS)
    load(root, task)
    path = root / "annotations" / "instances_train.json"
    before = path.stat()
    text = path.read_text().replace("2.5", "3.5", 1)
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time
    assert load(root, task).records[0].segments.boxes[0, 1] == 3.5


def test_a_damaged_cache_counts_as_none(task: str, tmp_path: Path) -> None:
    root = write(tmp_path / "data", ROWS)
    first = content(load(root, task))
    (path,) = cached(tmp_path)
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:-30], whole[: len(whole) // 2], whole.replace(b"\x01", b"\x02")):
        path.write_bytes(damaged)
        assert content(load(root, task)) == first
        assert path.read_bytes() == whole, "written anew"
    with open(path, "wb") as file:
        np.savez(file, rest=np.frombuffer(b"[]", np.uint8), kinds=np.zeros(9))
    assert content(load(root, task)) == first


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"area": "81"}, True),
        ({"iscrowd": None}, True),
        ({"bbox": None}, True),
        ({"bbox": [1, 2, 0, 4]}, True),
        ({"id": "a"}, False),
        ({"area": "large"}, False),
        ({"bbox": [1, 2, 2**60, 4]}, False),
        ({"bbox": [1, 2, 3]}, False),
    ],
    ids=str,
)
def test_rows_are_cached_as_they_are_read_or_not_at_all(
    task: str, tmp_path: Path, change: dict[str, Any], kept: bool
) -> None:
    root = write(tmp_path / "data", [ROWS[1], {**ROWS[0], **change}])
    first = content(load(root, task))
    assert bool(cached(tmp_path)) == kept
    assert content(load(root, task)) == first


def test_the_cache_is_bounded_and_can_be_switched_off(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_cache, "_LIMIT", 9000)
    for number in range(5):
        load(write(tmp_path / "data", [*ROWS[: 1 + number % 3], {**ROWS[0], "id": 50 + number}]), task)
    assert 0 < len(cached(tmp_path)) < 5
    assert sum(path.stat().st_size for path in cached(tmp_path)) <= 9000
    monkeypatch.setenv("DETRKIT_ANNOTATION_CACHE", "off")
    kept = cached(tmp_path)
    load(write(tmp_path / "data", ROWS[:1]), task)
    assert cached(tmp_path) == kept


def test_a_folder_that_cannot_be_written_is_no_error(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "file"))
    assert len(load(write(tmp_path / "data", ROWS), task).records) == 2
