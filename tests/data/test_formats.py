"""All formats give the same annotations; formats are recognised, and errors name missing files."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from detrkit.config.schema import DataSection
from detrkit.data import load_dataset
from detrkit.data.formats import FORMATS, find_sources, recognise_format
from detrkit.errors import DataError
from tests.data.trees import (
    BOXES,
    NAMES,
    TREES,
    cityscapes_tree,
    coco,
    coco_tree,
    dump,
    roboflow_tree,
    voc_tree,
    write_image,
    write_images,
    yolo_tree,
)
from tests.workplace import detrkit_cli


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_format_gives_the_same_annotations(tmp_path: Path, kind: str, split: str) -> None:
    root = TREES[kind](tmp_path / "data sèt")
    assert recognise_format(root).name == kind.split(",")[0]
    dataset = load_dataset(root, split=split)
    assert dataset.categories.names == list(NAMES)
    assert dataset.load_errors == []
    assert dataset.name == "data sèt"
    found = {}
    for index, record in enumerate(dataset.records):
        assert dataset.read_image(index).size == (record.width, record.height) == (40, 30)
        corners = zip(record.labels.tolist(), record.boxes.round(4).tolist(), strict=True)
        found[record.path.name] = [(label, x1, y1, x2 - x1, y2 - y1) for label, (x1, y1, x2, y2) in corners]
    assert found == BOXES[split]
    assert len(dataset.coco_ground_truth()["annotations"]) == sum(map(len, BOXES[split].values()))


@pytest.mark.parametrize(
    ("name", "train", "val", "classes"),
    [
        ("blood_cells_det", (205, 2804), (87, 1137), 3),
        ("nuclei_inst", (458, 19302), (89, 4324), 1),
        ("nuts_inst", (10, 96), (4, 39), 3),
        ("coco_open_panoptic", (21, 134), (22, 138), 80),
    ],
)
def test_real_data(shared: Path, name: str, train: tuple[int, int], val: tuple[int, int], classes: int) -> None:
    for split, expected in (("train", train), ("val", val)):
        dataset = load_dataset(shared / "data" / name, split=split)
        assert (len(dataset), sum(len(record.boxes) for record in dataset.records)) == expected
        assert len(dataset.categories) == classes
        assert dataset[0].image.shape[0] == 3


def test_folders_without_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data folder"):
        load_dataset(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        load_dataset(tmp_path / "empty")
    write_image(tmp_path / "photos" / "a.png")
    with pytest.raises(DataError) as error:
        load_dataset(tmp_path / "photos")
    for form in FORMATS.values():
        assert form.looked_for in str(error.value)
    assert "YOLO labels: write a data.yaml" in str(error.value)
    with pytest.raises(DataError, match="is a file that describes no data set"):
        load_dataset(tmp_path / "photos" / "a.png")
    with pytest.raises(DataError, match=r"format 'coc' is unknown\. Did you mean 'coco'"):
        load_dataset(tmp_path / "photos", format="coc")
    with pytest.raises(DataError, match=r"split 'trian' is unknown\. Did you mean 'train'"):
        load_dataset(tmp_path / "photos", split="trian")
    with pytest.raises(DataError, match="on_error 'skp' is unknown"):
        load_dataset(tmp_path / "photos", on_error="skp")  # the error under test


def test_a_folder_with_two_formats_needs_a_choice(tmp_path: Path) -> None:
    root = yolo_tree(coco_tree(tmp_path / "data"))
    with pytest.raises(DataError, match=r"coco and yolo at once; choose one with --format \(Python: format=, recipe: "):
        load_dataset(root)
    assert load_dataset(root, format="yolo").categories.ids == [0, 1]
    assert load_dataset(root, format="coco").categories.ids == [1, 2]


@pytest.mark.parametrize(
    ("make", "remove"),
    [
        (coco_tree, "annotations/instances_val.json"),
        (voc_tree, "ImageSets/Main/val.txt"),
        (roboflow_tree, "valid/_annotations.coco.json"),
    ],
)
def test_a_missing_val_split_says_how_to_make_one(tmp_path: Path, make: Callable[[Path], Path], remove: str) -> None:
    root = make(tmp_path / "data")
    (root / remove).unlink()
    assert len(load_dataset(root)) == 3
    with pytest.raises(DataError, match=r"no val split\. It has train; to make a split: detrkit data split") as error:
        load_dataset(root, split="val")
    assert "name the file with --annotations (Python: annotations=, recipe: data.val.annotations)" in str(error.value)
    with pytest.raises(DataError, match=r"no test split\. It has train$"):
        load_dataset(root, split="test")
    assert list(find_sources(root)) == ["train"]


@pytest.mark.parametrize(
    ("file", "images", "prefix"),
    [
        ("annotations/instances_default.json", "images", ""),  # CVAT
        ("Annotations/boxes.json", "images", ""),
        ("result.json", "images", "images/"),  # Label Studio
    ],
)
def test_the_only_coco_file_is_train(tmp_path: Path, file: str, images: str, prefix: str) -> None:
    root = tmp_path / "data"
    write_images("train", root / images)
    path = dump(root / file, coco("train", prefix=prefix))
    path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
    dump(path.with_name("captions_val.json"), {"annotations": []})
    assert [source.annotations for source in find_sources(root).values()] == [path]
    assert len(load_dataset(root)) == len(load_dataset(path)) == 3
    with pytest.raises(DataError, match="no val split"):
        load_dataset(root, split="val")
    dump(path.with_name("others.json"), coco("train", prefix=prefix))
    with pytest.raises(DataError, match="no known data set layout"):
        load_dataset(root)


def test_coco_files_of_splits_beside_their_images(tmp_path: Path) -> None:
    for split in BOXES:
        write_images(split, tmp_path / split)
        dump(tmp_path / f"{split}.json", coco(split))
    assert [len(load_dataset(tmp_path, split=split)) for split in find_sources(tmp_path)] == [3, 2]


def test_a_coco_file_elsewhere_can_be_split_as_the_error_advises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images("train", Path("elsewhere"))
    dump(Path("data/one/two/three/four/result.json"), coco("train"))
    with pytest.raises(DataError) as error:
        load_dataset("data")
    advice = re.search(r"detrkit (data split data --annotations FILE .*), then use (data_split)\.", str(error.value))
    assert advice is not None
    command = (
        advice[1].replace("FILE", "one/two/three/four/result.json").replace("[--images DIR]", "--images elsewhere")
    )
    assert detrkit_cli(shlex.split(command))[0] == 0
    assert [len(load_dataset(advice[2], split=split)) for split in ("train", "val")] == [2, 1]


def test_annotation_files_that_are_not_coco(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    path = root / "annotations" / "instances_train.json"
    for text, message in (("{", "is not JSON"), ("[]", "is a list"), ("{}", "no list 'images'")):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"instances_train\.json: .*{message}"):
            load_dataset(root)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(root)
    with pytest.raises(DataError, match=r"gone\.json: no such annotation file"):
        load_dataset(root, annotations="gone.json")


def test_annotation_file_and_image_folder_can_be_given(tmp_path: Path) -> None:
    write_images("train", tmp_path / "somewhere" / "else")
    root = tmp_path / "data"
    path = dump(root / "boxes.json", coco("train"))
    with pytest.raises(DataError, match=r"found none of its images such as 'a\.png' in .*say where they are") as error:
        load_dataset(root, annotations="boxes.json")
    assert "--images (Python: images=, recipe: data.train.images, data.val.images)" in str(error.value)
    assert len(load_dataset(root, annotations="boxes.json", images="../somewhere/else")) == 3
    assert len(load_dataset(root, annotations=path, images=tmp_path / "somewhere" / "else")) == 3
    with pytest.raises(DataError, match="no such image folder"):
        load_dataset(root, annotations="boxes.json", images="nowhere")
    with pytest.raises(DataError, match=r"^annotations '.*boxes\.json' names a COCO file, but format is 'voc'"):
        load_dataset(root, annotations="boxes.json", format="voc")


def test_several_candidate_files_need_a_choice(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_images("train", root / "images")
    for name in ("boxes_train_a", "boxes_train_b"):
        dump(root / "annotations" / f"{name}.json", coco("train"))
    with pytest.raises(DataError, match=r"boxes_train_a\.json, boxes_train_b\.json\); name one with --annotations"):
        load_dataset(root)
    assert len(load_dataset(root, annotations="annotations/boxes_train_b.json")) == 3
    dump(root / "annotations" / "instances_trainval.json", coco("val"))
    dump(root / "annotations" / "train.json", coco("train"))
    assert len(load_dataset(root)) == 3  # the usual name is preferred; trainval is not a val split
    with pytest.raises(DataError, match="no val split"):
        load_dataset(root, split="val")


def test_the_roboflow_placeholder_is_kept_if_any_split_uses_it(tmp_path: Path) -> None:
    root = roboflow_tree(tmp_path / "data")
    assert load_dataset(root).categories.ids == [1, 2]
    path = root / "valid" / "_annotations.coco.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["category_id"] = 0
    dump(path, data)
    assert load_dataset(root).categories.ids == [0, 1, 2]
    assert load_dataset(root, split="val").categories.ids == [0, 1, 2]


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: bolt, 1: nut}\n",
        "train: ../images/train\nval: ../images/val\nnames: [bolt, nut]\n",  # as Roboflow writes them
        "train: [images/train]\nval: val.txt\nnames:\n  - bolt\n  - nut\n",
        "train: {root}/images/train\nval: {root}/images/val\nnames: [bolt, nut]\n",
        "path: {root}\ntrain: images/train\nval: images/val\nnc: 2\nnames: [bolt, nut]\n",
    ],
)
def test_yolo_paths_and_names(tmp_path: Path, yaml: str) -> None:
    root = yolo_tree(tmp_path / "data")
    (root / "data.yaml").write_text(yaml.replace("{root}", str(root)))
    (root / "val.txt").write_text("images/val/d.png\n./images/val/e.png\n\n")
    for split in ("train", "val"):
        dataset = load_dataset(root, split=split)
        assert dataset.categories.names == list(NAMES)
        assert [record.path.name for record in dataset.records] == sorted(BOXES[split])
        assert sum(len(record.boxes) for record in dataset.records) == 3


@pytest.mark.parametrize("name", ["data.yaml", "data.yml", "dataset.yaml"])
def test_the_yolo_file_in_the_docs(tmp_path: Path, name: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert f"`{name}`" in text
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    root = yolo_tree(tmp_path / "data")
    (root / "data.yaml").unlink()
    (root / name).write_text(block)
    for split, images in BOXES.items():
        dataset = load_dataset(root, split=split)
        assert dataset.categories.names == list(NAMES)
        assert sum(len(record.boxes) for record in dataset.records) == sum(map(len, images.values()))


def test_yolo_splits_that_are_named_but_do_not_exist(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    lines = {"train": "images/train", "val": "images/val", "test": "../test/images", "names": "[bolt, nut]"}

    def splits(**changes: str) -> list[str]:
        (root / "data.yaml").write_text("".join(f"{key}: {value}\n" for key, value in {**lines, **changes}.items()))
        return list(find_sources(root))

    assert splits() == ["train", "val"]
    with pytest.raises(DataError, match=r"'\.\./test/images' does not exist \(looked for"):
        load_dataset(root, split="test")
    assert splits(val="[gone, nowhere.txt]", test="images/val") == ["train", "test"]
    assert splits(val="[gone, images/val]") == ["train", "val"]  # partly there: reading it names the missing part
    with pytest.raises(DataError, match="'gone' does not exist"):
        load_dataset(root, split="val")
    assert splits(train="gone") == ["train", "val"]
    with pytest.raises(DataError, match="'gone' does not exist"):
        load_dataset(root)


def test_yolo_image_folders_cannot_be_overridden(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names the image folders itself; images 'photos' cannot change them"):
        load_dataset(yolo_tree(tmp_path / "data"), images="photos")


def test_yolo_rows(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    labels = root / "labels" / "train" / "a.txt"
    labels.write_text("1 0.25 0.5 0.5 0.5 0.25 0.75 0.3 0.6\n\n0.0 0.5 0.5 1 1\n")  # a polygon, and 0.0 for class 0
    record = load_dataset(root).records[0]
    assert record.labels.tolist() == [1, 0]
    assert record.boxes.round(6).tolist() == [[10, 15, 20, 22.5], [0, 0, 40, 30]]
    bad = {
        "0 0.5 0.5 nan 1": r"a\.txt: line 1: has a number that is not finite: nan",
        "0 0.5 0.5 0 1": r"a\.txt: line 1 .*no positive width",
        "0 0.5 0.5": r"a\.txt: line 1: .*four numbers",
        "0 a b c d": r"a\.txt: line 1: .*four numbers",
        "x 0 0 1 1": r"a\.txt: line 1: 'x' is not a class number",
        "0.5 0 0 1 1": r"a\.txt: line 1: '0.5' is not a class number",
    }
    for row, message in bad.items():
        labels.write_text(row)
        with pytest.raises(DataError, match=message):
            load_dataset(root)
        dataset = load_dataset(root, on_error="skip")
        assert len(dataset.records[0].boxes) == 0
        assert len(dataset.load_errors) == 1
    labels.write_text("2 0.5 0.5 1 1")
    with pytest.raises(DataError, match="category id 2 is not among"):
        load_dataset(root, on_error="skip")


def test_yolo_without_readable_images(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    (root / "images" / "train" / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.png: not an image"):
        load_dataset(root)
    assert [record.path.name for record in load_dataset(root, on_error="skip").records] == ["b.png", "ü c.png"]
    cases = {
        "train: images/none\nnames: [a]\n": "'images/none' does not exist",
        "train: images/train\nnames: 3\n": "names must be",
        "train: images/train\nnc: 3\nnames: [a]\n": "nc is 3 but there are 1 names",
        "train: labels\nnames: [a]\n": "holds no images",
        "train: [\n": "cannot be read as YAML",
        "text": "is not a table",
    }
    for text, message in cases.items():
        (root / "data.yaml").write_text(text)
        with pytest.raises(DataError, match=message):
            load_dataset(root)
    (root / "data.yaml").write_text("train: images/train\nnames: [a]\n")
    with pytest.raises(DataError, match="no val split"):
        load_dataset(root, split="val")


def test_voc_difficult_sizes_and_classes(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "data")
    path = root / "Annotations" / "a.xml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("<difficult>0", "<difficult>1", 1).replace("<width>40", "<width>0"), encoding="utf-8")
    record = load_dataset(root).records[0]
    assert (record.width, record.height) == (40, 30)
    assert record.labels.tolist() == [1]
    assert record.crowd_labels.tolist() == [0]
    (root / "ImageSets" / "Main" / "train.txt").write_text("b\n")  # this split has no objects, but both classes
    assert load_dataset(root).categories.names == list(NAMES)
    path.write_text(text.replace("<xmin>5<", "<xmin>?<"), encoding="utf-8")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a  1\nb -1\n")
    with pytest.raises(DataError, match=r"a\.xml: object 1 .*four numbers"):
        load_dataset(root)
    path.write_text("<annotation>")
    with pytest.raises(DataError, match=r"a\.xml: is not readable XML"):
        load_dataset(root)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.xml: no such annotation file"):
        load_dataset(root)


def test_voc_without_lists_is_train(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "data")
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").unlink()
    with pytest.raises(DataError, match=r"no train split\. It has val"):
        load_dataset(root)
    shutil.rmtree(root / "ImageSets")
    assert list(find_sources(root)) == ["train"]
    dataset = load_dataset(root)
    assert [record.file_name for record in dataset.records] == sorted({**BOXES["train"], **BOXES["val"]})
    assert dataset.categories.names == list(NAMES)


def test_voc_trainval_without_train(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "data")
    lists = root / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("a\nb\nd\n")
    assert [record.path.stem for record in load_dataset(root).records] == ["a", "b", "ü c"]
    (lists / "train.txt").unlink()
    assert [record.path.stem for record in load_dataset(root).records] == ["a", "b"]  # d is val
    (lists / "val.txt").unlink()
    assert list(find_sources(root)) == ["train"]
    assert [record.path.stem for record in load_dataset(root).records] == ["a", "b", "d"]


def test_voc_files_next_to_the_images(tmp_path: Path) -> None:
    whole, root = voc_tree(tmp_path / "whole"), tmp_path / "roboflow"
    for split, folder in (("train", "train"), ("val", "valid")):
        for name in BOXES[split]:
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(whole / "JPEGImages" / name, root / folder / Path(name).with_suffix(".PNG"))
            shutil.copy((whole / "Annotations" / name).with_suffix(".xml"), root / folder)
    (root / "valid" / "e.xml").write_text((root / "valid" / "e.xml").read_text().replace("nut", "washer"))
    assert list(find_sources(root)) == ["train", "val"]
    for split in BOXES:
        dataset = load_dataset(root, split=split)
        assert [record.path.stem for record in dataset.records] == sorted(Path(name).stem for name in BOXES[split])
        assert dataset.read_image(0).size == (40, 30)
        assert sum(len(record.boxes) for record in dataset.records) == 3
        assert dataset.categories.names == ["bolt", "nut", "washer"]
    assert len(load_dataset(root / "train")) == 3  # a folder as LabelImg writes it
    with pytest.raises(DataError, match=r"no val split\. It has train"):
        load_dataset(root / "train", split="val")
    for path in (root / "train").glob("*.xml"):
        path.unlink()
    (root / "train" / "annotations.xml").write_text("<annotations/>")  # CVAT's own format
    with pytest.raises(DataError, match="no known data set layout"):
        load_dataset(root / "train")


def test_cityscapes_without_annotations_says_which_download_has_them(tmp_path: Path) -> None:
    root = cityscapes_tree(tmp_path / "cityscapes")
    assert load_dataset(root).records[0].file_name == "ulm/a.png"
    (tmp_path / "CocoFormatAnnos" / "cityscapes_train_cocostyle.json").unlink()
    with pytest.raises(DataError, match=r"gtFine/train: no label images .*gtFine_trainvaltest\.zip"):
        load_dataset(root)
    (root / "gtCoarse").mkdir()
    with pytest.raises(DataError, match=r"gtCoarse has coarse outlines, .*; download gtFine_trainvaltest\.zip"):
        load_dataset(root, task="pan")


def test_every_format_can_be_named_in_recipes() -> None:
    allowed = get_args(DataSection.model_fields["format"].annotation)
    assert sorted(allowed) == sorted(["auto", *FORMATS])
