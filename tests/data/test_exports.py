"""The layouts that CVAT exports: read in silence with their images, and named where the images were left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from detrkit.data import load_dataset
from detrkit.data.doctor import Finding, check
from detrkit.data.formats import find_sources
from detrkit.errors import DataError
from tests.data.trees import dump, write_image

NAMES = ("a", "b", "c")
ROW = "0 0.5 0.5 0.25 0.5\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def yolo_11(root: Path) -> str:
    """YOLO 1.1: ``data/`` of its lists is the folder itself."""
    write(root / "obj.data", "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(root / "obj.names", "bolt\n")
    write(root / "train.txt", "".join(f"data/obj_train_data/{name}.png\n" for name in NAMES))
    for name in NAMES:
        write(root / "obj_train_data" / f"{name}.txt", ROW)
    return "obj_train_data"


def ultralytics(root: Path) -> str:
    write(root / "data.yaml", "names:\n  0: bolt\npath: .\ntrain: train.txt\n")
    write(root / "train.txt", "".join(f"data/images/train/{name}.png\n" for name in NAMES))
    for name in NAMES:
        write(root / "labels" / "train" / f"{name}.txt", ROW)
    return "images/train"


def yolo_folders(root: Path) -> str:
    write(root / "data.yaml", "names: [bolt]\ntrain: images/train\n")
    for name in NAMES:
        write(root / "labels" / "train" / f"{name}.txt", ROW)
    return "images/train"


def coco(root: Path) -> str:
    images = [{"id": n, "file_name": f"{name}.png", "width": 40, "height": 30} for n, name in enumerate(NAMES, 1)]
    rows = [{"id": n, "image_id": n, "category_id": 1, "bbox": [4, 3, 10, 12], "iscrowd": 0} for n in (1, 2, 3)]
    table = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "bolt"}]}
    dump(root / "annotations" / "instances_default.json", table)
    return "images/default"


def voc(root: Path) -> str:
    write(root / "ImageSets" / "Main" / "default.txt", "".join(f"{name}\n" for name in NAMES))
    for name in NAMES:
        box = "<bndbox><xmin>4</xmin><ymin>3</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
        size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
        content = f"<filename>{name}.png</filename>{size}<object><name>bolt</name>{box}</object>"
        write(root / "Annotations" / f"{name}.xml", f"<annotation>{content}</annotation>")
    return "JPEGImages"


EXPORTS = (yolo_11, ultralytics, yolo_folders, coco, voc)


def faults(root: Path) -> dict[str, Finding]:
    return {found.check: found for found in check(find_sources(root)).findings if found.level != "ok"}


@pytest.mark.parametrize("export", EXPORTS)
def test_a_standard_layout_is_read_in_silence(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, export: Callable[[Path], str]
) -> None:
    root = tmp_path / "cvat"
    folder = export(root)
    for seed, name in enumerate(NAMES):
        write_image(root / folder / f"{name}.png", seed=seed)
    assert set(faults(root)) == {"splits"}, "there is no val split"
    data = load_dataset(root)
    assert [len(record.labels) for record in data.records] == [1, 1, 1]
    assert not recwarn.list


@pytest.mark.parametrize("export", EXPORTS)
def test_an_export_without_its_images(tmp_path: Path, export: Callable[[Path], str]) -> None:
    root = tmp_path / "cvat"
    folder = export(root)
    with pytest.raises(DataError, match=r"an export without its images\? Put the images into ") as error:
        load_dataset(root)
    try:
        found = faults(root)
    except DataError as stopped:
        named = str(stopped)
    else:
        assert set(found) == {"image files", "splits"}, "nothing is called background or an absent class"
        named = found["image files"].message
    for message in (named, str(error.value)):
        place = message.split("Put the images into ")[1].split(",")[0]
        for seed, name in enumerate(NAMES):
            write_image(Path(place) / f"{name}.png", seed=seed)
    assert set(faults(root)) == {"splits"}, f"the advice helps; usual is {folder}"


def test_one_missing_image_is_no_export_without_images(tmp_path: Path) -> None:
    root = tmp_path / "cvat"
    folder = yolo_11(root)
    write_image(root / folder / "a.png")
    found = faults(root)
    assert (found["image files"].count, found["image files"].message) == (2, "missing")
    assert "empty images" not in found
    with pytest.raises(DataError, match=r"image file missing \(and 1 more of 3 images\).*data\.on_error=skip"):
        load_dataset(root)


def test_files_of_annotations_alone(tmp_path: Path) -> None:
    write(tmp_path / "labels" / "a.txt", ROW)
    with pytest.raises(DataError, match=r"1 text files, such as .*a\.txt, and no images: an export without its images"):
        find_sources(tmp_path)
    write(tmp_path / "annotations.xml", '<annotations><image id="0" name="a.png"/></annotations>')
    with pytest.raises(DataError, match=r"annotations\.xml is CVAT's own format, which is not read; export as COCO"):
        find_sources(tmp_path)


def test_a_folder_called_data_is_meant(tmp_path: Path) -> None:
    write(tmp_path / "data.yaml", "names: [bolt]\ntrain: train.txt\n")
    write(tmp_path / "train.txt", "data/a.png\n")
    write_image(tmp_path / "data" / "a.png", seed=1)
    write_image(tmp_path / "a.png", seed=2)
    assert [record.path for record in load_dataset(tmp_path).records] == [tmp_path / "data" / "a.png"]
