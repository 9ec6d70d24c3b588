"""Within a ``read_once`` block annotations are read once; outside and in the next block they are read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from detrkit.data import load_dataset
from detrkit.data.formats import find_source, read_source
from detrkit.data.once import annotation_cache, read_once
from detrkit.data.xml_files import read_xml
from tests.data.trees import TREES, coco_tree, edit, roboflow_tree, voc_tree


def test_the_cache_ends_with_the_outermost_block(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    file = root / "annotations" / "instances_train.json"
    with read_once():
        with read_once():
            first = load_dataset(root)
        edit(file, lambda data: data["annotations"].clear())
        again = load_dataset(root, repeat=2)
        assert again.records == first.records * 2
        assert (again.categories, again.protocol) == (first.categories, first.protocol)
        assert not load_dataset(root, on_error="skip").records[0].labels.size, "other arguments read again"
    assert not load_dataset(root).records[0].labels.size
    assert not annotation_cache()


def test_an_error_is_not_cached(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    file = root / "annotations" / "instances_train.json"
    whole = file.read_text()
    with read_once():
        file.write_text("{")
        with pytest.raises(Exception, match="is not JSON"):
            load_dataset(root)
        file.write_text(whole)
        assert len(load_dataset(root)) == 3


def loaded(root: Path) -> list[Any]:
    """Ground truth, errors and protocol of both splits."""
    sets = [load_dataset(root, split=split) for split in ("train", "val")]
    return [(data.coco_ground_truth(), data.load_errors, data.protocol) for data in sets]


@pytest.mark.parametrize("make", TREES.values(), ids=list(TREES))
def test_the_cache_does_not_change_the_data(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    root = make(tmp_path / "data")
    expected = loaded(root)
    with read_once():
        assert loaded(root) == loaded(root) == expected


def test_one_reading_opens_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also outside of a block, although the classes are those of the files of all splits."""
    source = find_source(voc_tree(tmp_path / "data"), "train")
    reader = Mock(side_effect=read_xml)
    monkeypatch.setattr("detrkit.data.formats.voc.read_xml", reader)
    read_source(source)
    assert sorted(call.args[0] for call in reader.mock_calls) == sorted(source.root.rglob("*.xml"))


@pytest.mark.parametrize("used", [True, False])
def test_the_roboflow_placeholder_is_dropped_if_no_split_uses_it(tmp_path: Path, used: bool) -> None:
    root = roboflow_tree(tmp_path / "data")
    if used:
        edit(root / "valid" / "_annotations.coco.json", lambda c: c["annotations"][0].update(category_id=0))
    with read_once():
        for split in ("train", "val"):
            ids = [row["id"] for row in read_source(find_source(root, split)).categories]
            assert ids == ([0, 1, 2] if used else [1, 2])
    assert [len(load_dataset(root, split=split).categories) for split in ("train", "val")] == [2 + used] * 2
