"""Rows read in parts: those of the whole file, or nothing where the file cannot be cut."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from detrkit.data import row_slices
from detrkit.data.row_slices import RowFile, telling_progress
from detrkit.metrics.coco_files import read_ground_truth

ROW = {"id": 1, "image_id": 7, "bbox": [1, 2.5, 3, 4], "segmentation": {"size": [8, 9], "counts": "a]b}, {["}, "x": "ü"}
ROWS = [{**ROW, "id": number} for number in range(1, 30)]
REST: dict[str, Any] = {
    "images": [{"id": 7, "tags": [[], {}]}],
    "info": {"note": '"annotations": [{}]'},
    "n": [[1], {}],
}


def written(path: Path, content: object, **options: Any) -> Path:
    path.write_text(json.dumps(content, **options), encoding="utf-8")
    return path


@pytest.mark.parametrize("options", [{}, {"indent": 1}, {"separators": (",", ":"), "ensure_ascii": False}])
@pytest.mark.parametrize("size", [1, 300, 10**6])
@pytest.mark.parametrize("place", range(4))
def test_rows_and_rest_are_those_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: int, size: int, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(row_slices, "_SLICE", size)
    keys = list(REST)
    keys.insert(place, "annotations")
    content = {key: ROWS if key == "annotations" else REST[key] for key in keys}
    found = RowFile.read(written(tmp_path / "a.json", content, **options), "annotations")
    assert found is not None
    for _ in range(2):
        chunks = list(found)
        assert [row for chunk in chunks for row in chunk.rows] == ROWS
        assert [row for chunk in chunks for row in chunk.exact()] == ROWS
        assert [chunk.first for chunk in chunks] == [chunk.rows[0]["id"] - 1 for chunk in chunks]
    assert found.rest == REST
    assert size > 10**5 or len(chunks) > 1


@pytest.mark.parametrize(
    "content",
    [
        {"annotations": []},
        {"annotations": [1, 2]},
        {"annotations": {}},
        {"info": {"annotations": [ROW]}, "annotations": [ROW]},
        {"info": {"annotations": [ROW]}},
        {"annotations": [{**ROW, "area": float("nan")}]},
        [ROW],
        {},
    ],
    ids=str,
)
def test_files_without_such_a_list_are_not_cut(tmp_path: Path, content: Any) -> None:
    found = RowFile.read(written(tmp_path / "a.json", content), "annotations")
    assert found is None or all(chunk.rows == content["annotations"] for chunk in found)


@pytest.mark.parametrize("cut", range(1, 200, 7))
def test_a_file_that_ends_early_is_not_cut(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "a.json", {"annotations": ROWS, **REST})
    path.write_bytes(path.read_bytes()[:-cut])
    assert RowFile.read(path, "annotations") is None


def test_whole_numbers_beyond_64_bits_are_exact(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {"annotations": [{"id": 2**70}]})
    found = RowFile.read(path, "annotations")
    assert found is not None
    assert [list(chunk.exact()) for chunk in found] == [[{"id": 2**70}]]


def test_ground_truth_is_read_within_three_times_its_file_and_tells_progress(tmp_path: Path) -> None:
    boxes = [[float(n % 400), 1.25, 20.5, 30.125] for n in range(20_000)]
    rows = [{"id": n, "image_id": n % 9, "category_id": 1, "bbox": box, "area": 617.5} for n, box in enumerate(boxes)]
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in range(9)]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "bolt"}]}
    path, told = written(tmp_path / "a.json", content), list[tuple[int, int]]()
    del content, rows
    size = path.stat().st_size
    with pytest.MonkeyPatch.context() as patch, telling_progress(lambda *done: told.append(done)):
        patch.setattr(row_slices, "_SLICE", 50_000)
        tracemalloc.start()
        truth = read_ground_truth(path, iou_type="bbox")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(truth.objects) == 20_000
    assert truth.objects.numbers[:, 1:5].tolist() == boxes
    assert peak < 3 * size
    assert told
    assert all(0 < done <= total == size for done, total in told)
