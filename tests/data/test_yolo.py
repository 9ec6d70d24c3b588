"""YOLO: what a row is, where class names and images are, and the layouts that other tools export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from detrkit.data import load_dataset
from detrkit.data.annotations import objects_of
from detrkit.data.formats import find_sources, recognise_format
from detrkit.data.formats.yolo_rows import parse_row
from detrkit.errors import DataError
from tests.data.trees import BOXES, NAMES, yolo_tree

BOX = "0.25 0.5 0.5 0.4"


@pytest.mark.parametrize(
    ("row", "keypoints", "polygon", "confidence"),
    [
        (BOX, None, None, None),
        (f"{BOX} 0.9", None, None, 0.9),
        ("0 0.3 0.5 0.3 0.2 0.7", None, 3, None),
        ("0 0.3 0.5 0.3 0.5 0.7 0 0.7", None, 4, None),
        (f"{BOX} 0.1 0.3 2 0.4 0.6 1", (2, 3), None, None),  # ten values: an even number, yet no polygon
        (f"{BOX} 0.1 0.3 0.4 0.6", (2, 2), None, None),
        (f"{BOX} 0.1 0.3 2 0.4 0.6 1 0.8", (2, 3), None, 0.8),
        (f"{BOX} 0 0 0 0.5 0.5 0.5", (2, 3), None, None),
        (BOX, (2, 3), None, None),
    ],
)
def test_rows(row: str, keypoints: tuple[int, int] | None, polygon: int | None, confidence: float | None) -> None:
    found = parse_row(["3.0", *row.split()], keypoints)
    assert found.label == 3
    assert found.confidence == confidence
    assert (None if found.polygon is None else len(found.polygon) // 2) == polygon
    assert found.box == pytest.approx((0, 0.3, 0.5, 0.4))


@pytest.mark.parametrize(
    ("row", "keypoints", "message"),
    [
        ("bolt 0.5 0.5 1 1", None, "'bolt' is not a class number"),
        ("-1 0.5 0.5 1 1", None, "'-1' is not a class number"),
        ("nan 0.5 0.5 1 1", None, "'nan' is not a class number"),
        ("0", None, "0 numbers after the class; a box has four"),
        ("0 0.5 0.5", None, "2 numbers after the class"),
        ("0 0.5 0.5 1 1 7", None, "5 numbers after the class"),  # no confidence
        (f"0 {BOX} 0.1 0.1 2", None, "7 numbers after the class; .* key points need kpt_shape"),
        (f"0 {BOX} 0.1 0.1 2 0.2 0.2 2", None, "2 is no fraction of the image"),
        ("0 12 30 5 5", None, "12 is no fraction of the image: YOLO counts from 0 to 1, not in pixels"),
        ("0 0.1 0.1 nan 0.1 0.5 0.6", None, "not finite: nan"),
        ("0 0.1 0.1 inf 0.1", None, "not finite: inf"),
        (f"0 {BOX} 0.1 0.1", (2, 3), r"6 numbers after the class; with kpt_shape \[2, 3\]"),
        ("0 1,5 0.5 1 1", None, "'1,5 0.5 1 1' are not four numbers"),
    ],
)
def test_rows_that_are_none(row: str, keypoints: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_row(row.split(), keypoints)


def test_bad_rows_are_named_or_left_out(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    labels = root / "labels" / "train" / "a.txt"
    labels.write_text("0 0.5 0.5 1 1\n\n0 0.5 0.5\nx 0.5 0.5 1 1\n")
    with pytest.raises(
        DataError, match=r"a\.txt: line 3: 2 numbers .* \(and 1 more rows\)\. Correct it, or set on_error"
    ):
        load_dataset(root)
    dataset = load_dataset(root, on_error="skip")
    assert [note.split("labels/")[1][:19] for note in dataset.load_errors] == [
        "train/a.txt: line 3",
        "train/a.txt: line 4",
    ]
    assert len(dataset.records[0].boxes) == 1


def test_confidences_are_announced(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    labels = root / "labels" / "train" / "a.txt"
    rows = labels.read_text().splitlines()
    labels.write_text("".join(f"{row} 0.9\n" for row in rows))
    with pytest.warns(UserWarning, match=r"data\.yaml: 2 rows with a confidence .*labels/train/a\.txt: line 1\)"):
        dataset = load_dataset(root)
    assert len(dataset.records[0].boxes) == 2


def test_polygons_are_masks(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    for split, images in BOXES.items():
        for name, boxes in images.items():
            rows = []
            for label, x, y, w, h in boxes:
                corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
                rows.append(" ".join([str(label), *(f"{a / 40} {b / 30}" for a, b in corners)]) + "\n")
            (root / "labels" / split / f"{Path(name).stem}.txt").write_text("".join(rows))
    dataset = load_dataset(root, task="inst")
    objects = objects_of(dataset.records[0].segments, size=(40, 30), task="inst")
    assert objects.masks is not None
    assert objects.masks.sum(dim=(1, 2)).tolist() == [10 * 12, 20 * 24]
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"a\.txt: line 1 .*segmentation"):
        load_dataset(root, task="inst")
    assert len(load_dataset(root).records[0].boxes) == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("{0: on, 1: off}", ["on", "off"]),
        ("[yes, 007]", ["yes", "007"]),
        ("\n  0: 1_000\n  1: 1:30", ["1_000", "1:30"]),
        ("['null', ~]", ["null", "~"]),
        ('["bolt", "nut # 2"]', ["bolt", "nut # 2"]),
        ("names.txt", ["on", "off road"]),
    ],
)
def test_class_names_are_as_written(tmp_path: Path, names: str, expected: list[str]) -> None:
    root = yolo_tree(tmp_path / "data")
    (root / "names.txt").write_bytes("on\r\noff road\r\n".encode("utf-8-sig"))
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\ntest:\nnc: 2\nnames: {names}\n")
    assert load_dataset(root).categories.names == expected
    assert list(find_sources(root)) == ["train", "val"]


@pytest.mark.parametrize("shape", ["3", "[17]", "[17, 4]", "{a: 1}"])
def test_a_wrong_kpt_shape(tmp_path: Path, shape: str) -> None:
    root = yolo_tree(tmp_path / "data")
    (root / "data.yaml").write_text(f"train: images/train\nnames: [bolt, nut]\nkpt_shape: {shape}\n")
    with pytest.raises(DataError, match=r"data\.yaml: kpt_shape must be \[number of key points, 2 or 3\]"):
        load_dataset(root)


def without_yaml(root: Path) -> Path:
    """A YOLO tree without ``data.yaml``."""
    yolo_tree(root)
    (root / "data.yaml").unlink()
    return root


def names_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in NAMES))


def label_studio(root: Path) -> Path:
    """images/, labels/, classes.txt and notes.json, without splits."""
    without_yaml(root)
    for folder in ("images", "labels"):
        for path in sorted((root / folder).rglob("*.*")):
            path.rename(root / folder / path.name)
    names_file(root / "classes.txt")
    (root / "notes.json").write_text('{"categories": [], "info": {}}')
    return root


def labelimg(root: Path) -> Path:
    """Images, label files and classes.txt in one folder."""
    without_yaml(root)
    for path in sorted(root.rglob("*.*")):
        path.rename(root / path.name)
    names_file(root / "classes.txt")
    return root


def cvat(root: Path) -> Path:
    """YOLO 1.1: obj.data, obj.names, train.txt and obj_train_data/."""
    without_yaml(root)
    for split in BOXES:
        lines = []
        for folder in ("images", "labels"):
            for path in sorted((root / folder / split).iterdir()):
                target = root / f"obj_{split}_data" / path.name
                target.parent.mkdir(exist_ok=True)
                path.rename(target)
                lines += [f"data/obj_{split}_data/{path.name}\n"] if folder == "images" else []
        (root / f"{split}.txt").write_text("".join(lines))
    shutil.rmtree(root / "images")
    names_file(root / "obj.names")
    (root / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nvalid = data/val.txt\ntest = data/test.txt\n"
        "names = data/obj.names\nbackup = backup/\n"
    )
    return root


def cvat_ultralytics(root: Path) -> Path:
    """data.yaml with lists of images."""
    yolo_tree(root)
    for split, images in BOXES.items():
        (root / f"{split}.txt").write_text("".join(f"data/images/{split}/{name}\n" for name in images))
    (root / "data.yaml").write_text("names:\n  0: bolt\n  1: nut\npath: .\ntrain: train.txt\nval: val.txt\n")
    return root


def splits_inside(root: Path) -> Path:
    """train/images, train/labels, classes.txt."""
    without_yaml(root)
    for split, word in (("train", "train"), ("val", "valid")):
        for folder in ("images", "labels"):
            (root / word).mkdir(exist_ok=True)
            (root / folder / split).rename(root / word / folder)
    names_file(root / "classes.txt")
    return root


@pytest.mark.parametrize("make", [label_studio, labelimg, cvat, cvat_ultralytics, splits_inside])
@pytest.mark.filterwarnings("ignore:.*their end is taken")
def test_layouts_of_other_tools(tmp_path: Path, make: object) -> None:
    assert callable(make)
    root = make(tmp_path / "data")
    assert recognise_format(root).name == "yolo"
    found = {}
    for split in find_sources(root):
        dataset = load_dataset(root, split=split)
        assert dataset.categories.names == list(NAMES)
        found[split] = {record.path.name: len(record.boxes) for record in dataset.records}
    whole = {split: {name: len(boxes) for name, boxes in images.items()} for split, images in BOXES.items()}
    one = {"train": {name: count for images in whole.values() for name, count in images.items()}}
    assert found == (whole if make in (cvat, cvat_ultralytics, splits_inside) else one)


def test_class_names_beside_the_labels(tmp_path: Path) -> None:
    root = without_yaml(tmp_path / "data")
    for split in BOXES:
        names_file(root / "labels" / split / "classes.txt")
    assert list(find_sources(root)) == ["train", "val"]
    assert load_dataset(root, split="val").categories.names == list(NAMES)
    (root / "labels" / "val" / "classes.txt").write_text("nut\nbolt\n")
    with pytest.raises(DataError, match=r"val/classes\.txt: has other class names than .*train/classes\.txt"):
        load_dataset(root)


def test_classes_alone_are_no_data_set(tmp_path: Path) -> None:
    root = without_yaml(tmp_path / "data")
    with pytest.raises(DataError, match="no known data set layout"):
        load_dataset(root)  # nobody says what the classes are
    names_file(root / "classes.txt")
    assert len(load_dataset(root)) == 3
    for path in sorted((root / "images").rglob("*.png")):
        path.unlink()
    for path in sorted((root / "labels").rglob("*.txt")):
        path.rename(root / "labels" / path.name)
    with pytest.raises(DataError, match=r"classes\.txt: train: images holds no images"):
        load_dataset(root)
    shutil.rmtree(root / "labels")
    with pytest.raises(DataError, match="no known data set layout"):
        load_dataset(root)
