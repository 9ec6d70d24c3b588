"""One rule for all formats: which files belong to a data set, and where the images are that annotations name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detrkit.data import load_dataset
from detrkit.data.formats import find_sources
from detrkit.data.listing import child, files_in, find_by_name, images_in, read_lines
from detrkit.data.xml_files import read_xml
from detrkit.errors import DataError
from tests.data.trees import (
    BOXES,
    NAMES,
    TREES,
    coco,
    dump,
    masks_tree,
    voc_tree,
    write_image,
    write_images,
    yolo_tree,
)

COMPANION = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


def boxes_of(root: Path, split: str) -> dict[str, list[tuple[int, ...]]]:
    """Boxes (label, x, y, width, height) of a data set by file name."""
    found = {}
    for record in load_dataset(root, split=split).records:
        corners = np.concatenate([record.boxes[:, :2], record.boxes[:, 2:] - record.boxes[:, :2]], axis=1)
        rows = zip(record.labels.tolist(), corners.round(4).tolist(), strict=True)
        found[record.path.name] = [(label, *box) for label, box in rows]
    return found


def litter(root: Path) -> None:
    """Companions of macOS beside every file, and folders of editors, archives and file managers."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            path.with_name(f"._{path.name}").write_bytes(COMPANION)
        elif path.is_dir():
            for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
                for file in sorted(path.iterdir()):
                    if file.is_file() and not file.name.startswith("._"):
                        (path / name).mkdir(exist_ok=True)
                        shutil.copy(file, path / name / file.name)


@pytest.mark.parametrize("kind", TREES)
def test_hidden_files_are_no_data_in_any_format(tmp_path: Path, kind: str) -> None:
    root = TREES[kind](tmp_path / ".cache" / "data")  # which lies in a hidden folder itself
    litter(root)
    for split in BOXES:
        assert boxes_of(root, split) == BOXES[split]


def test_hidden_masks_are_no_data(tmp_path: Path) -> None:
    root = masks_tree(tmp_path / "data")
    litter(root)
    assert len(load_dataset(root, task="sem")) == 3


def test_files_and_links(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.jp2", "c.txt", ".d.png", "sub/e.PNG", "sub/.f/g.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    os.symlink(tmp_path, tmp_path / "sub" / "loop")
    assert [path.name for path in images_in(tmp_path)] == ["a.JPG", "b.jp2"]
    assert [path.name for path in images_in(tmp_path, recursive=True)] == ["a.JPG", "b.jp2", "e.PNG"]
    assert files_in(tmp_path / "gone") == files_in(tmp_path / "c.txt") == []
    assert child(tmp_path, "SUB") == tmp_path / "sub"
    assert child(tmp_path, "gone", "A.jpg") == tmp_path / "a.JPG"
    assert child(tmp_path / "gone", "a") is None


def test_images_are_found_by_name(tmp_path: Path) -> None:
    for name in ("one/a.jpg", "two/a.jpg", "two/b.JPG", "c d.png", "e\u0301.png", "taken.png"):
        write_image(tmp_path / name)
    written = [
        r"C:\work\two\\a.jpg",
        "../../media/upload/4/b.jpg",
        "file:///data/c%20d.png",
        "\u00e9.png",
        "/else/taken.png",
        "three/a.jpg",
        "gone.png",
    ]
    found = find_by_name(written, tmp_path, taken=[tmp_path / "taken.png"])
    places = {name: path.relative_to(tmp_path).as_posix() for name, path in found.items()}
    # three/a.jpg may be either, taken.png is another image, and gone.png is nowhere
    assert places == dict(zip(written, ["two/a.jpg", "two/b.JPG", "c d.png", "e\u0301.png"], strict=False))
    assert find_by_name(["x/b.jpg", "y/b.jpg"], tmp_path) == {}  # two names cannot be the same image


def test_texts_and_their_encodings(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("a\u00fc\r\n\r\n b ".encode(encoding))
        assert read_lines(path) == ["a\u00fc", "", "b"]
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match=r"list\.txt: line 2 is not UTF-8 text; save the file as UTF-8"):
        read_lines(path)
    with pytest.raises(DataError, match="no such file"):
        read_lines(tmp_path / "gone.txt")


@pytest.mark.parametrize(
    "encoding", ["gb2312", "GBK", "Shift_JIS", "EUC-KR", "big5", "utf-16", "UTF-8", "utf-8-sig", ""]
)
def test_xml_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    name = "\uac00" if encoding == "EUC-KR" else "\u4e2d"
    head = f'<?xml version="1.0" encoding="{encoding}"?>\n' if encoding not in ("", "utf-8-sig") else ""
    path = tmp_path / "a.xml"
    path.write_bytes(f"{head}<a><b>{name}</b></a>".encode(encoding or "utf-8"))
    assert read_xml(path).findtext("b") == name


def test_xml_that_is_not_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    for declared, data, message in (
        ("utf-8", "\u4e2d".encode("gb2312"), r"not text in the encoding utf-8 that it names; save it as UTF-8"),
        ("klingon", b"x", "encoding klingon"),
        ("utf-8", b"<c>", "not readable XML"),
    ):
        path.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>\n<a>'.encode() + data + b"</a>")
        with pytest.raises(DataError, match=rf"a\.xml: .*{message}"):
            read_xml(path)
    with pytest.raises(DataError, match="no such annotation file"):
        read_xml(tmp_path / "gone.xml")


@pytest.mark.parametrize(
    "written",
    [r"..\\..\\label-studio\\media\\upload\\4\\{}", "/home/ann/photos/{}", r"D:\\photos\\{}", "../old/{}", "old/{}"],
)
def test_coco_paths_of_another_machine(tmp_path: Path, written: str) -> None:
    write_images("train", tmp_path / "images")
    data = coco("train")
    for image in data["images"]:
        image["file_name"] = written.format(image["file_name"])
    dump(tmp_path / "result.json", data)
    with pytest.warns(
        UserWarning, match=r"result\.json: 3 paths .*the image with the same name is taken \(.*images/a\.png"
    ):
        assert boxes_of(tmp_path, "train") == BOXES["train"]
    (tmp_path / "images" / "a.png").unlink()
    with pytest.warns(UserWarning, match="2 paths"), pytest.raises(DataError, match=r"a\.png: image file missing"):
        load_dataset(tmp_path)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DataError, match="found none of its images"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("separator", ["/", "\\"])
@pytest.mark.parametrize("base", ["", "./", "images/train/../../", "/content/old/"])
@pytest.mark.filterwarnings("ignore:.*the image with the same name is taken")
def test_yolo_lists(tmp_path: Path, separator: str, base: str) -> None:
    root = yolo_tree(tmp_path / "data")
    for split, images in BOXES.items():
        lines = [f"{base}images/{split}/{name}".replace("/", separator) for name in images]
        (root / f"{split}.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    (root / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [bolt, nut]\n")
    for split in BOXES:
        assert boxes_of(root, split) == BOXES[split]


@pytest.mark.parametrize("entry", ["/content/data/images/{}", r"C:\\data\\images\\{}", "../data/images/{}"])
def test_yolo_folders_of_another_machine(tmp_path: Path, entry: str) -> None:
    root = yolo_tree(tmp_path / "data")
    lines = (f"{split}: '{entry.format(split)}'\n" for split in BOXES)
    (root / "data.yaml").write_text("".join(lines).replace("\\\\", "\\") + "names: [bolt, nut]\n")
    assert boxes_of(root, "train") == BOXES["train"]


def test_a_missing_folder_is_not_replaced_by_a_parent(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    (root / "data.yaml").write_text("train: images/train\nval: /old/unseen/images\nnames: [bolt, nut]\n")
    assert list(find_sources(root)) == ["train"]


@pytest.mark.parametrize("kind", ["labels", "beside", "darknet", "mixed"])
def test_yolo_label_files_beside_images(tmp_path: Path, kind: str) -> None:
    root = yolo_tree(tmp_path / "data")
    for path in sorted((root / "labels").rglob("*.txt")):
        if kind == "beside" or (kind == "mixed" and path.stem != "a"):
            path.rename(root / "images" / path.relative_to(root / "labels"))
        elif kind == "darknet":
            path.rename(path.with_suffix(".png.TXT" if path.stem == "a" else ".TXT")).with_suffix(".txt")
    if kind == "darknet":
        (root / "labels" / "train" / "a.png.TXT").rename(root / "labels" / "train" / "a.png.txt")
    for split in BOXES:
        assert boxes_of(root, split) == BOXES[split]


CASE = {"Annotations": "annotations", "JPEGImages": "images", "ImageSets": "imagesets", "Main": "main"}


@pytest.mark.parametrize("renamed", [(), ("Annotations", "JPEGImages"), ("ImageSets",), ("Main",), tuple(CASE)])
def test_voc_folders_in_any_case(tmp_path: Path, renamed: tuple[str, ...]) -> None:
    root = voc_tree(tmp_path / "data")
    for path in sorted(root.rglob("*"), reverse=True):
        if path.name in renamed:
            path.rename(path.with_name(CASE[path.name]))
    for split in BOXES:
        assert boxes_of(root, split) == BOXES[split]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ({"default": "ab"}, {"train": "ab"}),
        ({"my_train_list": "ab", "my_val_list": "d"}, {"train": "ab", "val": "d"}),
        ({"train": "a", "bolt_train": "ab", "val": "d", "bolt_val": "e"}, {"train": "a", "val": "d"}),
        ({"TRAIN": "a", "Valid": "d"}, {"train": "a", "val": "d"}),
    ],
)
def test_voc_lists_of_any_name(tmp_path: Path, names: dict[str, str], splits: dict[str, str]) -> None:
    root = voc_tree(tmp_path / "data")
    shutil.rmtree(root / "ImageSets")
    for name, stems in names.items():
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(stems))
    assert {
        split: "".join(sorted(Path(name).stem for name in boxes_of(root, split))) for split in find_sources(root)
    } == splits


def test_voc_names_in_lists(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "data")
    for folder, suffix in (("JPEGImages", ".png"), ("Annotations", ".xml")):
        (root / folder / f"a{suffix}").rename(root / folder / f"a 1{suffix}")
        (root / folder / f"b{suffix}").rename(root / folder / f"b.2{suffix}")
    lists = root / "ImageSets" / "Main"
    for lines in (
        ["a 1", "b.2", "\u00fc c"],
        ["a 1  1", "b.2 -1", "\u00fc c  0"],  # a list of one class
        ["JPEGImages/a 1.png", r".\JPEGImages\b.2.png", "/old/JPEGImages/\u00fc c.png"],
        ["../JPEGImages/a 1.png ../Annotations/a 1.xml", "Annotations/b.2.xml", "\u00fc c.xml"],
    ):
        (lists / "train.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
        assert list(boxes_of(root, "train")) == ["a 1.png", "b.2.png", "\u00fc c.png"]


def test_voc_images_with_the_same_stem(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "data")
    for suffix in (".bmp", ".tif"):
        write_image(root / "JPEGImages" / f"a{suffix}", seed=5)
    assert boxes_of(root, "train") == BOXES["train"]  # the XML file names a.png


def test_voc_splits_in_subfolders(tmp_path: Path) -> None:
    whole, root = voc_tree(tmp_path / "whole"), tmp_path / "data"
    for split, folder in (("train", "train"), ("val", "Valid")):
        for name in BOXES[split]:
            for kind, file in (("JPEGImages", Path(name)), ("Annotations", Path(name).with_suffix(".xml"))):
                target = root / CASE[kind] / folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(whole / kind / file, target)
    for split in BOXES:
        assert boxes_of(root, split) == BOXES[split]
        assert load_dataset(root, split=split).categories.names == list(NAMES)


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_the_data_set_inside_a_folder_is_named(tmp_path: Path, kind: str) -> None:
    root = TREES[kind](tmp_path / "archive" / "sub" / "data")
    (tmp_path / "archive" / "__MACOSX").mkdir()
    with pytest.raises(DataError) as error:
        load_dataset(tmp_path / "archive")
    assert str(error.value).endswith(f"Did you mean {root} ({kind})?")
    assert len(str(error.value)) < 80 + 2 * len(str(root))


@pytest.mark.parametrize("make", [yolo_tree])
def test_the_file_of_a_data_set_as_the_argument(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    root = make(tmp_path / "data")
    for split in BOXES:
        assert boxes_of(root / "data.yaml", split) == BOXES[split]
    (root / "data.yaml").rename(root / "bolts.yaml")
    assert boxes_of(root, "train") == boxes_of(root / "bolts.yaml", "train") == BOXES["train"]
    (root / "recipe.yaml").write_text("model: {name: detr_lite0}\n")
    with pytest.raises(DataError, match=r"recipe\.yaml: is a file that describes no data set"):
        load_dataset(root / "recipe.yaml")
