"""ADE20K as it is downloaded: class 0 is void, classes are those of objectInfo150.txt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.data import EvalTransform, load_dataset
from detrkit.data.class_lists import read_class_list
from detrkit.data.doctor import check
from detrkit.data.formats import find_sources
from detrkit.data.ground_truth import semantic_map
from detrkit.errors import DataError
from tests.data.trees import write_image, write_map

OBJECTS = """Idx\tRatio\tTrain\tVal\tStuff\tName
1\t0.1576\t11664\t1172\t1\twall
2\t0.1072\t6046\t612\t1\tbuilding, edifice
3\t0.0878\t8265\t796\t1\tsky
150\t0.0001\t47\t4\t0\tflag
"""


def values(*, void: bool = True) -> np.ndarray:
    """Sky above, walls below, a flag, and in the first column nothing."""
    found = np.full((20, 30), 1)
    found[:8] = 3
    found[4:12, 10:20] = 150
    found[:, 0] = 0 if void else 1
    return found


def ade20k_tree(root: Path) -> Path:
    """images/{training,validation}, annotations/…, objectInfo150.txt, sceneCategories.txt; one photo is gray."""
    for word, split, count in (("training", "train", 3), ("validation", "val", 2)):
        for number in range(1, count + 1):
            name = f"ADE_{split}_{number:08d}"
            write_image(root / "images" / word / f"{name}.jpg", (30, 20), seed=number + 10 * len(word))
            write_map(root / "annotations" / word / f"{name}.png", values(void=number > 1))
    gray = root / "images" / "training" / "ADE_train_00000002.jpg"
    Image.fromarray(np.full((20, 30), 90, np.uint8)).save(gray)
    (root / "objectInfo150.txt").write_text(OBJECTS)
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 bathroom\nADE_val_00000001 street\n")
    return root


def test_classes_void_and_maps(tmp_path: Path) -> None:
    root = ade20k_tree(tmp_path)
    dataset = load_dataset(root, task="sem").with_transform(EvalTransform(short_side=20, max_side=30))
    assert [(one.id, one.name) for one in dataset.categories] == [
        (1, "wall"),
        (2, "building"),
        (3, "sky"),
        (150, "flag"),
    ]
    assert len(dataset.records) == 3
    assert dataset[1].image.shape == (3, 20, 30)  # the gray photo
    assert [dataset.categories.names[label] for label in dataset[1].target.labels.tolist()] == ["wall", "sky", "flag"]
    truth = semantic_map(dataset.records[1], dataset.categories)
    label = {1: 0, 2: 1, 3: 2, 150: 3, 0: 255}
    assert np.array_equal(truth.labels, np.vectorize(label.get)(values()))
    assert len(load_dataset(root, split="val", task="sem").records) == 2


def test_check_and_bad_values(tmp_path: Path) -> None:
    root = ade20k_tree(tmp_path)
    report = check(find_sources(root, task="sem"))
    assert not report.failed
    assert report.contents.format == "ade20k"
    write_map(root / "annotations" / "training" / "ADE_train_00000003.png", values() * 0 + 151)
    with pytest.raises(DataError, match=r"ADE_train_00000003\.png: value 151 .* is no class of .*objectInfo150\.txt"):
        load_dataset(root, task="sem")
    (root / "annotations" / "training" / "ADE_train_00000003.png").unlink()
    with pytest.raises(DataError, match=r"ADE_train_00000003\.jpg: has no mask"):
        load_dataset(root, task="sem")
    assert len(load_dataset(root, task="sem", on_error="skip").records) == 2


def test_lists_of_classes(tmp_path: Path) -> None:
    root = ade20k_tree(tmp_path)
    (root / "objectInfo150.txt").unlink()
    with pytest.raises(DataError, match=r"objectInfo150\.txt: no such file; .*ADEChallengeData2016\.zip"):
        load_dataset(root, task="sem")
    (root / "classes.txt").write_text("wall\nbuilding\n\nsky\n" + "".join(f"class {k}\n" for k in range(4, 151)))
    assert load_dataset(root, task="sem").categories[2].id == 3
    (root / "classes.json").write_text('{"names": ["other", "wall", "building", "sky"], "ignore_index": 150}')
    assert load_dataset(root, task="sem").categories.names == ["other", "wall", "building", "sky"]
    table = tmp_path / "broken.txt"
    table.write_text("Idx\tName\n1\twall\nx\tsky\n")
    with pytest.raises(DataError, match="line 3 has no number and name"):
        read_class_list(table)
    table.write_text("Idx\tName\n1\tdoor, double door\n2\tdoor, screen door\n")  # alike by their first words
    assert read_class_list(table).categories.names == ["door, double door", "door, screen door"]
