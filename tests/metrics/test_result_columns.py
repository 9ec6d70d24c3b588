"""Quick reading of results: the numbers that reading row by row gives, and nothing where a row needs a second look."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.data import row_slices
from detrkit.data.packed_masks import mask_rle
from detrkit.data.row_slices import rows_of_list
from detrkit.metrics import result_files, score_coco
from detrkit.metrics.coco_files import read_ground_truth
from detrkit.metrics.object_table import IdNumbers, ObjectTable, plain_results
from detrkit.metrics.result_files import read_results

IMAGES: dict[Hashable, int] = {3: 1, 7: 2, 9: 3}
CATEGORIES: dict[Hashable, int] = {1: 0, 18: 1}
KNOWN = IdNumbers(IMAGES), IdNumbers(CATEGORIES)
TRUTH = {
    "images": [{"id": key, "width": 100, "height": 80} for key in IMAGES],
    "categories": [{"id": key, "name": str(key)} for key in CATEGORIES],
    "annotations": [],
}
ROW = {"image_id": 7, "category_id": 18, "bbox": [1, 2.5, 3, 4], "score": 0.25}


def rows(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {
            "image_id": int(random.choice([3, 7, 9])),
            "category_id": int(random.choice([1, 18])),
            "bbox": [*random.uniform(0, 90, 4).round(2).tolist()],
            "score": float(random.random()),
            "segmentation": mask_rle(random.random((80, 100)) < 0.5),
            "note": "a}]b{",  # braces and brackets, as run lengths may have
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("size", [1, 50, 1000, 10**6])
def test_a_file_gives_what_reading_row_by_row_gives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int, indent: int | None, iou_type: str
) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps(rows(40), indent=indent) + "\n")
    truth = read_ground_truth(TRUTH, iou_type=iou_type)
    with monkeypatch.context() as patch:
        patch.setattr(result_files, "plain_results", lambda *_: None)
        patch.setattr(result_files, "rows_of_list", lambda *_, **__: iter([None]))
        slow = read_results(path, truth, iou_type=iou_type)
    monkeypatch.setattr(row_slices, "_SLICE", size)
    monkeypatch.setattr(result_files, "clean_owner", None)  # not called
    monkeypatch.setattr(result_files, "clean_annotation", None)
    quick = read_results(path, truth, iou_type=iou_type)
    assert len(slow) == 40
    assert quick.numbers.tolist() == slow.numbers.tolist()
    assert list(map(packed, [quick])) == list(map(packed, [slow]))


@contextmanager
def in_this_process(work: Callable[[], Any], *, most: int) -> Iterator[Callable[[], Any]]:
    """Stands for ``in_a_copy``."""

    def result() -> Any:
        try:
            found = work()
        except Exception:
            return None
        assert found.size <= most
        return found.ravel()

    yield result


@pytest.mark.parametrize("change", [{}, {"score": "0.5"}, {"category_id": 5}, {"note": "}, {"}], ids=str)
@pytest.mark.parametrize("place", [3, 31])
@pytest.mark.parametrize("size", [200, 10**6])
def test_the_half_that_is_read_ahead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int, place: int, change: dict[str, object]
) -> None:
    found = [{**ROW, "score": number / 50} for number in range(40)]
    found[place] |= change
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found))
    truth = read_ground_truth(TRUTH, iou_type="bbox")
    said = pytest.warns(UserWarning, match="category ids 5 ") if "category_id" in change else nullcontext()
    with said:
        alone = read_results(path, truth, iou_type="bbox")
    ahead: list[int] = []
    identities = result_files._identities

    def counted(*arguments: Any) -> Any:
        numbers = identities(*arguments)
        ahead.append(-1 if numbers is None else len(numbers))
        return numbers

    monkeypatch.setattr(row_slices, "_SLICE", size)
    monkeypatch.setattr(row_slices, "_WORTH_TWO", 1)
    monkeypatch.setattr(result_files, "in_a_copy", in_this_process)
    monkeypatch.setattr(result_files, "_identities", counted)
    with said:
        both = read_results(path, truth, iou_type="bbox")
    assert both.numbers.tolist() == alone.numbers.tolist()
    unread = place > 20 and "score" in change  # an unknown class is seen only after it was read
    assert ahead == [-1 if unread else ahead[0]]
    assert unread or 10 < ahead[0] < 30


def test_the_ground_truth_is_read_meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    rows = [{**ROW, "id": number + 1, "area": 12, "iscrowd": 0} for number in range(40)]
    truth.write_text(json.dumps({**TRUTH, "annotations": rows}))
    found.write_text(json.dumps([{**ROW, "score": number / 50} for number in range(40)]))
    alone = score_coco(truth, found)
    monkeypatch.setattr(row_slices, "_WORTH_TWO", 1)
    shares = []
    for others in (None, truth):
        seam = row_slices.seam_of_list(found, 0 if others is None else truth.stat().st_size // 4)
        shares.append(seam / found.stat().st_size)
    assert 0.2 < shares[1] < shares[0] < 0.6
    assert score_coco(truth, found) == alone


@pytest.mark.parametrize("span", [1, 1 << 20])
def test_numbers_of_ids(span: int) -> None:
    numbers: dict[Hashable, int] = {3: 1, 7 * span: 2, -9: 3, "12": 4, 2**60: 5}
    known = IdNumbers(numbers)
    found = known.of(np.array([7 * span, 3, -9, -9]))
    assert found is not None
    assert found.tolist() == [2, 1, 3, 3]
    for unknown in (4, 12, -10, 7 * span + 1, 2**60, -(2**62)):
        assert known.of(np.array([3, unknown])) is None
    assert IdNumbers({}).of(np.array([3])) is None


def packed(table: ObjectTable) -> list[bytes]:
    return [] if table.masks is None else [table.masks.packed(place) for place in range(len(table))]


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": "7"},
        {"image_id": 8},
        {"image_id": True},
        {"category_id": 18.0},
        {"category_id": 2},
        {"score": None},
        {"score": "0.5"},
        {"score": float("nan")},
        {"bbox": None},
        {"bbox": "1234"},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, "4"]},
        {"bbox": [1, 2, -3, 4]},
        {"bbox": [1, 2, 3, 10**400]},
        {"bbox": [2e6, 2, 3, 4]},
        {"bbox": [1, 2, True, 4]},
        {"area": "large"},
        {"iscrowd": 2},
    ],
    ids=str,
)
def test_rows_with_anything_else_are_left_to_the_other_reading(change: dict[str, Any]) -> None:
    assert plain_results([ROW, {**ROW, **change}], *KNOWN) is None
    assert plain_results([ROW, ROW], *KNOWN) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[1]",
        "[%s,]",
        "[%s,,%s]",
        "[%s %s]",
        "[%s] ]",
        "[%s],[%s]",
        "[[%s]]",
        "[%s",
        "%s]",
        "[%s, null]",
        '[{"image_id": 7}]',
        "\ufeff[%s]",
    ],
)
def test_files_that_are_no_plain_list_of_rows_are_left_to_the_other_reading(tmp_path: Path, text: str) -> None:
    path = tmp_path / "found.json"
    path.write_text(text.replace("%s", json.dumps(ROW)), encoding="utf-8")
    assert not is_cut(path)
    assert not is_cut(tmp_path / "missing.json")


def is_cut(path: Path) -> bool:
    return all(chunk is not None and plain_results(chunk.rows, *KNOWN) for chunk in rows_of_list(path))
