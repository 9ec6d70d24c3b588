"""Annotations of large files stay on disk: everything is as with rows in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrkit.data import row_slices
from detrkit.data.doctor import check
from detrkit.data.file_rows import FileRows
from detrkit.data.formats import Source, coco, find_source, find_sources, read_source
from detrkit.data.open import load_source
from detrkit.errors import DataError


def test_large_annotation_files_stay_on_disk_and_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are parsed anew in each pass: the same report, records and copies as of rows in memory."""
    rows: list[dict[str, Any]] = [
        {"id": n, "image_id": 1 + n % 3, "category_id": 1, "bbox": [n, 2.5, 9, 9], "area": 81, "iscrowd": 0, "x": [n]}
        for n in range(12)
    ]
    rows[5] |= {"iscrowd": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    rows[7] |= {"area": "81", "id": 3, "bbox": [-5, 1, 9, 9]}  # text, an id that another one has, beyond the border
    rows[8] |= {"bbox": [1, 2, 0, 4]}
    rows[9] |= {"bbox": rows[3]["bbox"], "image_id": rows[3]["image_id"]}
    rows[10] |= {"image_id": 9}
    rows[11] |= {"bbox": [500, 500, 4, 4]}
    root = tmp_path / "data"
    (root / "images" / "train").mkdir(parents=True)
    images = []
    for number in (1, 2, 3):
        Image.new("RGB", (60, 40), (80 * number, 0, 0)).save(root / "images" / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 60, "height": 40})
    (root / "annotations").mkdir()
    content = {
        "images": images,
        "annotations": rows,
        "categories": [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))

    def seen() -> list[object]:
        table = read_source(find_source(root, "train"))
        dataset = load_source(find_source(root, "train"), on_error="skip")
        numbers = [(*record.segments.boxes.tolist(), *record.segments.areas.tolist()) for record in dataset.records]
        return [
            check(find_sources(root)),
            list(table.annotations),
            [table.annotations[place] for place in (-1, 3, 0)],
            table.annotations[2:9:3],
            numbers,
            dataset.load_errors,
        ]

    kept = seen()
    monkeypatch.setattr(coco, "_LARGE", 0)
    monkeypatch.setattr(row_slices, "_SLICE", 300)
    assert isinstance(read_source(find_source(root, "train")).annotations, FileRows)
    assert seen() == kept


def test_a_large_file_that_changes_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco, "_LARGE", 0)
    path = tmp_path / "a.json"
    content = {"images": [], "categories": [], "annotations": [{"id": 1, "image_id": 1, "category_id": 1}]}
    path.write_text(json.dumps(content))
    table = coco.read(Source(format="coco", root=tmp_path, split="train", annotations=path))
    assert len(list(table.annotations)) == 1
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(DataError, match=r"a\.json: has changed while it was read"):
        list(table.annotations)
