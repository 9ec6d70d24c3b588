"""Data sets written as YOLO, VOC or COCO with their images load like the original."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from detrkit.data import load_dataset
from detrkit.data.convert import to_coco
from detrkit.data.doctor import check
from detrkit.data.formats import find_source, find_sources, read_source
from detrkit.data.write_folders import flat_names, rounded
from tests.data.trees import BOXES, NAMES, TREES, coco, coco_tree, dump, edit, voc_tree, write_images, yolo_tree
from tests.workplace import detrkit_cli


def convert(*words: object) -> tuple[int, str]:
    """Exit code and stderr of ``detrkit data convert``."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        code, _ = detrkit_cli(["data", "convert", *map(str, words)])
    return code, stderr.getvalue()


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("to", ["yolo", "voc", "coco"])
def test_converted_folders_load_like_the_original(tmp_path: Path, kind: str, to: str) -> None:
    root, out = TREES[kind](tmp_path / "data"), tmp_path / "out"
    code, text = convert(root, "--to", to, "--copy", "--out", out)
    assert code == 0, text
    assert list(find_sources(out)) == ["train", "val"]
    for split, images in BOXES.items():
        dataset = load_dataset(out, split=split, format=to)
        assert dataset.categories.names == list(NAMES)
        found = {}
        for index, record in enumerate(dataset.records):
            assert record.path.is_file()
            assert not record.path.is_symlink()
            assert record.path.resolve().is_relative_to(out.resolve())
            assert dataset.read_image(index).size == (40, 30)
            rows = zip(record.labels.tolist(), record.boxes.round(3).tolist(), strict=True)
            found[record.path.name] = [(label, x1, y1, x2 - x1, y2 - y1) for label, (x1, y1, x2, y2) in rows]
        expected = {name: [pytest.approx(box, abs=0.01) for box in boxes] for name, boxes in images.items()}
        assert found == expected
    assert [f.check for f in check(find_sources(out)).findings if f.level in ("warning", "error")] == []


@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_images_are_links_without_copy(tmp_path: Path, to: str) -> None:
    root, out = coco_tree(tmp_path / "data"), tmp_path / "out"
    code, text = convert(root, "--to", to, "--out", out, "--split", "train")
    assert code == 0
    assert "images are links, --copy copies them" in text
    dataset = load_dataset(out)
    assert all(record.path.is_symlink() for record in dataset.records)
    assert {record.path.resolve() for record in dataset.records} == set((root / "images" / "train").iterdir())
    (tmp_path / "moved").mkdir()
    for name in ("data", "out"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert load_dataset(tmp_path / "moved" / "out").read_image(0).size == (40, 30)  # they move together


@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_crowds_borders_and_masks(tmp_path: Path, to: str) -> None:
    root, out = coco_tree(tmp_path / "data", splits=("train",)), tmp_path / "out"

    def change(data: dict[str, Any]) -> None:
        data["annotations"][0]["iscrowd"] = 1
        data["annotations"][1]["bbox"] = [30.123456, 20.5, 20, 20]
        data["annotations"][2]["segmentation"] = [[0, 0, 8, 0, 8, 6], [1, 1, 2, 1, 2, 2]]

    edit(root / "annotations" / "instances_train.json", change)
    code, text = convert(root, "--to", to, "--out", out)
    assert code == 0
    assert "left out: masks" in text
    assert ("1 crowd regions, which YOLO does not have" in text) is (to == "yolo")
    records = load_dataset(out).records
    assert records[0].boxes[0].tolist() == pytest.approx([30.12, 20.5, 40, 30], abs=1e-3)
    assert len(records[0].crowd_boxes) == (to == "voc")


def test_polygons_stay_polygons_in_yolo(tmp_path: Path) -> None:
    root, out = coco_tree(tmp_path / "data"), tmp_path / "out"
    for split in BOXES:

        def change(data: dict[str, Any]) -> None:
            for row in data["annotations"]:
                x, y, w, h = row["bbox"]
                row["segmentation"] = [[x, y, x + w, y, x + w, y + h]]

        edit(root / "annotations" / f"instances_{split}.json", change)
    assert convert(root, "--to", "yolo", "--out", out)[0] == 0
    row = (out / "labels" / "train" / "a.txt").read_text().splitlines()[0].split()
    assert [float(value) for value in row] == pytest.approx([0, 4 / 40, 3 / 30, 14 / 40, 3 / 30, 14 / 40, 15 / 30])
    assert len(load_dataset(out, task="inst")) == 3


def test_outlines_end_at_the_border_of_the_image_in_yolo(tmp_path: Path) -> None:
    root, out = coco_tree(tmp_path / "data", splits=("train",)), tmp_path / "out"
    outlines: list[Any] = [[20, -30, 70, 26, 20, 26], ["4", "3", "14", "3", "14", "15"], [50, 1, 60, 1, 60, 9]]

    def change(data: dict[str, Any]) -> None:
        for row, outline in zip(data["annotations"], outlines, strict=True):
            row["segmentation"] = [[2, 2], outline]

    edit(root / "annotations" / "instances_train.json", change)
    code, text = convert(root, "--to", "yolo", "--out", out)
    assert code == 0
    assert "ü c.png: an outline without area in the image" in text
    before, after = (load_dataset(folder, task="inst").coco_ground_truth()["annotations"] for folder in (root, out))
    assert [row["segmentation"] for row in after] == [row["segmentation"] for row in before[:2]]


def test_class_names_survive_yaml_and_xml(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data", splits=("train",))
    names = ["on", "007 <&> ü\u0007"]

    def change(data: dict[str, Any]) -> None:
        for row, name in zip(data["categories"], names, strict=True):
            row["name"] = name

    edit(root / "annotations" / "instances_train.json", change)
    for to, expected in (("yolo", names), ("voc", ["007 <&> ü_", "on"])):
        assert convert(root, "--to", to, "--out", tmp_path / to)[0] == 0
        assert load_dataset(tmp_path / to).categories.names == expected


def test_names_without_folders() -> None:
    names = ["one/a.jpg", "two/a.jpg", r"..\..\etc\a.png", "/etc/passwd", "x/..", "b.jpg", "B.png", ".hidden.jpg"]
    found = flat_names(names)
    assert list(found) == names
    assert list(found.values())[:4] == ["a.jpg", "two_a.jpg", "etc_a.png", "passwd"]
    assert len({Path(name).stem.lower() for name in found.values()}) == len(names)
    assert all("/" not in name and "\\" not in name and not name.startswith(".") for name in found.values())


def test_images_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = coco("train")
    for number, image in enumerate(data["images"]):
        image["file_name"] = f"part{number}/a.png"
    for number in range(3):
        write_images("train", root / f"part{number}")
    dump(root / "annotations" / "train.json", data)
    for to in ("yolo", "voc", "coco"):
        assert convert(root, "--to", to, "--copy", "--out", tmp_path / to)[0] == 0
        records = load_dataset(tmp_path / to).records
        assert sorted(len(record.boxes) for record in records) == [0, 1, 2]
        assert len({record.path for record in records}) == 3


def test_folders_with_content_are_refused(tmp_path: Path) -> None:
    root, out = coco_tree(tmp_path / "data"), tmp_path / "out"
    for to in ("yolo", "voc"):
        code, text = convert(root, "--to", to, "--out", out / "a.json")
        assert code == 2
        assert "writes a folder, not a file" in text
    out.mkdir()
    (out / "notes.md").write_text("")
    code, text = convert(root, "--to", "yolo", "--out", out)
    assert code == 2
    assert "the folder is not empty; choose another one, or pass --force" in text
    assert convert(root, "--to", "yolo", "--out", out, "--force")[0] == 0
    assert convert(root, "--to", "yolo", "--out", out, "--force", "--copy")[0] == 0
    assert sorted(path.name for path in (root / "images" / "train").iterdir()) == sorted(BOXES["train"])
    assert not (out / "images" / "train" / "a.png").is_symlink()


def test_coordinates_are_rounded_to_a_hundredth_of_a_pixel(tmp_path: Path) -> None:
    assert [rounded(value) for value in (10.000000001, 1.23456, 3, -0.004)] == [10, 1.23, 3, 0]
    assert json.dumps(rounded(10.000000001)) == "10"
    for make in (yolo_tree, voc_tree):
        data = to_coco(read_source(find_source(make(tmp_path / make.__name__), "train")))
        boxes = [row["bbox"] for row in data["annotations"]]
        assert json.dumps(boxes) == "[[4, 3, 10, 12], [20, 6, 20, 24], [0, 0, 8, 6]]"
    table = read_source(find_source(coco_tree(tmp_path / "coco"), "train"))
    table.annotations[0]["bbox"] = [1.006, 2, 0.004, 5]
    assert to_coco(table)["annotations"][0]["bbox"] == [1.006, 2, 0.004, 5]  # thinner than the rounding


def test_rows_that_cannot_be_read_are_not_lost_in_silence(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 1 1\n0 0.5\n")
    code, text = convert(root, "--out", tmp_path / "out")
    assert code == 2
    assert "a.txt: line 2: 1 numbers after the class" in text
    assert convert(root, "--out", tmp_path / "out", "--on-error", "skip")[0] == 0
    with pytest.warns(UserWarning, match=r"1 rows are left out \(.*a\.txt: line 2"):
        assert detrkit_cli(["data", "split", str(root), "--out", str(tmp_path / "s")])[0] == 0
