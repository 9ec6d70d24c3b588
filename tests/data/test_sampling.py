"""Subsets are seeded and nested; published COCO subsets are used if their files exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detrkit.data import load_dataset
from detrkit.data.formats import find_source, read_source
from detrkit.data.subsets import choose, sample_table, subset_size
from detrkit.errors import DataError
from tests.data.trees import coco, dump, official_coco_tree, write_image


@given(st.sets(st.text(min_size=1, max_size=8), max_size=40), st.integers(0, 99), st.data())
def test_larger_subsets_contain_smaller_ones(names: set[str], seed: int, data: st.DataObject) -> None:
    ordered = sorted(names)
    large = data.draw(st.integers(0, len(ordered)))
    small = data.draw(st.integers(0, large))
    inner, outer = choose(ordered, small, seed), choose(ordered, large, seed)
    assert set(inner) <= set(outer)
    assert (len(inner), len(outer)) == (small, large)
    assert inner == sorted(inner)
    backwards = ordered[::-1]
    assert {backwards[index] for index in choose(backwards, small, seed)} == {ordered[index] for index in inner}


def test_sizes() -> None:
    assert [subset_size(118287, rate=rate) for rate in (0.01, 0.02, 0.05, 0.1)] == [1182, 2365, 5914, 11828]
    assert subset_size(100, rate=0.29) == 29  # not 28, despite rounding errors
    assert subset_size(10, rate=0.01) == 1
    assert subset_size(10, count=10) == 10
    impossible: list[Any] = [{"rate": 0.0}, {"rate": 1.5}, {"count": 0}, {"count": 11}, {}, {"rate": 0.1, "count": 1}]
    for wrong in impossible:
        with pytest.raises(DataError):
            subset_size(10, **wrong)  # the error under test


def test_seeds_choose_differently() -> None:
    names = [f"{number}.jpg" for number in range(100)]
    assert len({tuple(choose(names, 10, seed)) for seed in range(5)}) == 5


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A COCO folder with 20 training images and two boxes per image."""
    root = official_coco_tree(tmp_path / "coco")
    data = coco("train")
    data["images"] = [
        {"id": number, "file_name": f"{number:012d}.png", "width": 40, "height": 30} for number in range(20)
    ]
    data["annotations"] = [
        {"id": number + 1, "image_id": number // 2, "category_id": 1, "bbox": [1, 1, 9, 9]} for number in range(40)
    ]
    for image in data["images"]:
        write_image(root / "train2017" / image["file_name"], seed=image["id"])
    dump(root / "annotations" / "instances_train2017.json", data)
    return root


def test_tables_keep_the_annotations_of_their_images(tree: Path) -> None:
    table = sample_table(read_source(find_source(tree, "train")), seed=5, rate=0.25)
    kept = {image["id"] for image in table.images}
    assert len(kept) == 5
    assert sorted(row["image_id"] for row in table.annotations) == sorted([*kept, *kept])
    assert table.info == {"sample_seed": 5, "sample_rate": 0.25, "sample_count": 5, "sample_of": 20}


def test_recipe_keys(tree: Path) -> None:
    def ids(**options: Any) -> list[int]:
        return [record.image_id for record in load_dataset(tree, **options).records]  # options vary

    tenth, quarter = ids(sample_rate=0.1), ids(sample_rate=0.25)
    assert (len(tenth), len(quarter)) == (2, 5)
    assert set(tenth) < set(quarter)
    assert ids(sample_rate=0.25, sample_seed=1) != quarter
    repeated = load_dataset(tree, sample_rate=0.1, sample_repeat=True)
    assert [record.image_id for record in repeated.records] == tenth * 10
    assert [image["id"] for image in repeated.coco_ground_truth()["images"]] == tenth
    assert len(repeated.coco_ground_truth()["annotations"]) == 4
    assert len(load_dataset(tree, sample_rate=0.1, sample_repeat=True, repeat=3)) == 3 * len(repeated)
    with pytest.raises(DataError, match="sample_repeat needs sample_rate"):
        load_dataset(tree, sample_repeat=True)


def test_published_subsets_are_preferred(tree: Path) -> None:
    whole = json.loads((tree / "annotations" / "instances_train2017.json").read_text())
    # like the published files: fewer images, all annotations
    dump(
        tree.parent / "CocoFormatAnnos" / "instances_train2017_sample1182.json",
        {**whole, "images": whole["images"][:3]},
    )
    dataset = load_dataset(tree, sample_rate=0.01, sample_repeat=True)
    assert [record.image_id for record in dataset.records] == [0, 1, 2] * 100
    assert len(dataset.coco_ground_truth()["annotations"]) == 6
    assert len(load_dataset(tree, sample_rate=0.05)) == 1  # no such file: our own subset
