"""Conversion to COCO JSON keeps the annotations of every format, and writes files atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from detrkit.data import load_dataset
from detrkit.data.convert import split_table, to_coco, usable_part
from detrkit.data.formats import find_source, read_source
from detrkit.errors import DataError, RunError
from detrkit.files import replacing, write_json
from tests.data.trees import TREES, coco_tree, dump, yolo_tree


@pytest.mark.parametrize("kind", TREES)
def test_converted_data_load_like_the_original(tmp_path: Path, kind: str) -> None:
    root = TREES[kind](tmp_path / "data")
    out = tmp_path / "new" / "place"
    for split in ("train", "val"):
        table, notes = usable_part(read_source(find_source(root, split)))
        assert notes == []
        data = to_coco(table, relative_to=out)
        assert not any("where" in row for row in data["annotations"])
        dump(out / "annotations" / f"instances_{split}.json", data)
        old, new = load_dataset(root, split=split), load_dataset(out, split=split)
        assert new.categories == old.categories
        for ours, theirs in zip(new.records, old.records, strict=True):
            assert ours.path.samefile(theirs.path)
            assert ours.labels.tolist() == theirs.labels.tolist()
            assert ours.boxes == pytest.approx(theirs.boxes, abs=0.005)


def test_unusable_rows_are_left_out_on_request(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0 1\n1 0.5 0.5 1 1\n")
    table = read_source(find_source(root, "train"))
    with pytest.raises(DataError, match="no positive width"):
        usable_part(table)
    part, notes = usable_part(table, on_error="skip")
    assert len(part.annotations) == len(table.annotations) - 1 == 2
    assert len(notes) == 1


def test_splits_are_disjoint_and_complete(tmp_path: Path) -> None:
    table = read_source(find_source(coco_tree(tmp_path / "data"), "train"))
    parts = split_table(table, val=0.4, seed=0)
    ids = {name: {image["id"] for image in part.images} for name, part in parts.items()}
    assert (len(ids["train"]), len(ids["val"])) == (2, 1)
    assert ids["train"] | ids["val"] == {1, 2, 3}
    assert sum(len(part.annotations) for part in parts.values()) == len(table.annotations)
    for part in parts.values():
        assert {row["image_id"] for row in part.annotations} <= {image["id"] for image in part.images}
    with pytest.raises(DataError, match="between 0 and 1"):
        split_table(table, val=1.0, seed=0)


def test_files_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": "ü"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ü"}
    with pytest.raises(DataError, match=r"x\.json: exists already"):
        write_json(path, {})
    write_json(path, {"b": 1}, force=True)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_json(path, {"c": 1}, force=True)
    monkeypatch.undo()

    def stop() -> None:
        with replacing(path) as draft:
            draft.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert json.loads(path.read_text()) == {"b": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]
