"""``data check`` says what a data set has, which files it did not use, and what the reader decided."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.data.doctor import DataContents, Finding, check
from detrkit.data.formats import find_sources
from tests.data.trees import (
    BOXES,
    TREES,
    coco_tree,
    edit,
    instance_files_tree,
    masks_tree,
    panoptic_tree,
    voc_tree,
    write_image,
    yolo_tree,
)
from tests.workplace import detrkit_cli

MASK_TREES = {"masks": masks_tree, "instance files": instance_files_tree, "panoptic": panoptic_tree}


def faults(root: Path, *, task: str = "det") -> dict[str, Finding]:
    """The findings that are not ok by the name of the check, without the usual one about empty images."""
    findings = check(find_sources(root, task=task)).findings
    return {found.check: found for found in findings if found.level != "ok" and found.check != "empty images"}


@pytest.mark.parametrize("kind", TREES)
def test_the_first_line_says_what_there_is(tmp_path: Path, kind: str) -> None:
    root = TREES[kind](tmp_path / "data")
    told: list[DataContents] = []
    report = check(find_sources(root), tell=told.append)
    assert told == [report.contents]
    name = kind.split(",")[0]
    expected = f"{name}: train 3 images, 3 boxes; val 2 images, 3 boxes; 2 classes (bolt, nut)"
    assert str(report.contents) == expected


@pytest.mark.parametrize("kind", [*TREES, *MASK_TREES])
def test_clean_sets_are_ready_to_train(tmp_path: Path, kind: str) -> None:
    root = (TREES | MASK_TREES)[kind](tmp_path / "data")
    code, out = detrkit_cli(["data", "check", str(root)])
    lines = out.splitlines()
    assert code == 0, out
    first = next(line for line in lines if line.startswith(f"{root}: "))
    assert ": train 3 images, " in first
    assert "; val 2 images, " in first
    assert f"ready to train: detrkit train --data {root}" in out
    assert not faults(root, task="pan" if kind == "panoptic" else "det")


@pytest.mark.parametrize(
    ("make", "labels", "suffix"),
    [(yolo_tree, "labels/train", ".txt"), (voc_tree, "Annotations", ".xml")],
)
def test_labels_without_image(tmp_path: Path, make: object, labels: str, suffix: str) -> None:
    assert callable(make)
    root = make(tmp_path / "data")
    shutil.copy(root / labels / f"a{suffix}", root / labels / f"z{suffix}")
    (root / labels / "classes.txt").write_text("bolt\n")
    found = faults(root)
    assert set(found) == {"orphan labels"}
    assert found["orphan labels"].level == "warning"
    assert found["orphan labels"].examples == (str(root / labels / f"z{suffix}"),)


def test_images_without_label_file(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    (root / "labels" / "train" / "a.txt").unlink()
    found = faults(root)
    assert found["missing labels"].examples == ("images/train/a.png",)
    assert set(found) <= {"missing labels", "absent classes", "untrained classes"}


@pytest.mark.parametrize(
    ("make", "folder"), [(coco_tree, "images/train"), (voc_tree, "JPEGImages"), (yolo_tree, "images/train")]
)
def test_images_that_no_split_lists_and_files_of_other_kinds(tmp_path: Path, make: object, folder: str) -> None:
    assert callable(make)
    root = make(tmp_path / "data")
    for name in ("f.heic", "g.HEIC", "h.mp4", "notes.txt"):
        (root / folder / name).write_bytes(b"")
    write_image(root / folder / "z.png", seed=7)
    write_image(root / "more" / "y.png", seed=8)
    found = faults(root)
    assert found["unread files"].examples == (
        f".heic: 2, such as {root / folder / 'f.heic'}",
        f".mp4: 1, such as {root / folder / 'h.mp4'}",
    )
    listed = "missing labels" if make is yolo_tree else "unused images"
    assert "z.png" in found[listed].examples[0]
    assert found["unused folders"].examples == (f"{root / 'more'}: 1 images",)
    assert set(found) <= {"unread files", listed, "unused folders", "orphan labels"}


def test_images_that_share_a_label_file(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    write_image(root / "images" / "train" / "a.bmp", seed=9)
    assert faults(root)["shared labels"].examples == (str(root / "labels" / "train" / "a.txt"),)


def test_annotation_files_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "data")
    (root / "Annotations" / "a.xml").write_text("<annotation>")
    (root / "Annotations" / "d.xml").unlink()
    findings = [found for found in check(find_sources(root)).findings if found.check == "label files"]
    assert [(found.level, found.split) for found in findings] == [("error", "train"), ("error", "val")]
    assert "a.xml: is not readable XML" in findings[0].examples[0]
    assert "d.xml: no such annotation file" in findings[1].examples[0]


def test_twelve_bits_in_sixteen(tmp_path: Path) -> None:
    root = yolo_tree(tmp_path / "data")
    path = root / "images" / "train" / "a.png"
    values = np.random.default_rng(0).integers(0, 4096, (30, 40), dtype=np.uint16)
    Image.fromarray(values).save(path)
    assert faults(root)["image depth"].examples == (f"{path}: values up to {values.max()}",)
    Image.fromarray(values * np.uint16(16)).save(root / "images" / "train" / "b.png")  # the others may just be dark
    assert "image depth" not in faults(root)


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    code = (
        "import sys; from detrkit.cli.main import run\n"
        f"assert run(['data', 'check', {str(root)!r}]) == 0\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stderr.startswith(f"reading {root} …")
    assert out.stdout.splitlines()[-1] == "[]"


def test_twenty_planted_faults_are_named(tmp_path: Path) -> None:
    """Twenty faults in one data set: each is a line of its own, which names the file and the row where there is one."""
    root = yolo_tree(tmp_path / "data")
    images, labels = root / "images" / "train", root / "labels" / "train"
    (root / "data.yaml").write_text(
        "train: [images/train, more.txt]\nval: images/val\ntest: ../test/images\nnames: [bolt, nut, washer, Nut]\n"
    )
    good = "0 0.5 0.5 0.2 0.2\n"

    def plant(name: str, rows: str | None, seed: int) -> None:
        write_image(images / f"{name}.png", seed=seed)
        if rows is not None:
            (labels / f"{name}.txt").write_text(rows)

    expected: list[tuple[str, str]] = []
    plant("n01", None, 1)
    expected.append(("missing labels", "n01.png"))
    (labels / "n02.txt").write_text(good)
    expected.append(("orphan labels", "n02.txt"))
    (images / "n03.heic").write_bytes(b"")
    expected.append(("unread files", "n03.heic"))
    plant("n04", f"{good.strip()} 0.8\n", 4)
    expected.append(("confidences", "n04.txt: line 1"))
    plant("n05", f"{good}0 0.5 0.5\n", 5)
    expected.append(("label rows", "n05.txt: line 2"))
    plant("n06", "7 0.5 0.5 0.2 0.2\n", 6)
    expected.append(("category ids", "n06.txt: line 1"))
    plant("n07", "0 0.5 0.5 0 0.2\n", 7)
    expected.append(("box values", "n07.txt: line 1"))
    plant("n08", "0 1.3 0.5 0.2 0.2\n", 8)
    expected.append(("boxes outside", "n08.txt: line 1"))
    plant("n09", "0 0.95 0.5 0.4 0.2\n", 9)
    expected.append(("boxes beyond border", "n09.txt: line 1"))
    plant("n10", good + good, 10)
    expected.append(("duplicate boxes", "n10.txt: line 2"))
    plant("n11", good, 11)
    (images / "n11.png").write_bytes((images / "n11.png").read_bytes()[:300])
    expected.append(("image data", "n11.png"))
    plant("n12", good, 12)
    shutil.copy(images / "n12.png", root / "images" / "val" / "n12_again.png")
    (root / "labels" / "val" / "n12_again.txt").write_text(good)
    expected.append(("images across splits", "n12_again.png"))
    plant("n13", good, 13)
    shutil.copy(images / "n13.png", images / "n13_again.png")
    (labels / "n13_again.txt").write_text(good)
    expected.append(("duplicate images", "n13_again.png"))
    plant("n14", good, 14)
    Image.fromarray(np.full((30, 40), 4000, np.uint16)).save(images / "n14.png")
    expected.append(("image depth", "n14.png"))
    write_image(images / "n15.png", seed=15)
    (labels / "n15.txt").write_text(good)
    write_image(images / "n15.bmp", seed=150)
    expected.append(("shared labels", "n15.txt"))
    expected.append(("absent classes", "washer"))
    expected.append(("splits", "../test/images"))
    expected.append(("class names", "'nut' (id 1) = 'Nut' (id 3)"))
    write_image(root / "extra" / "n19.png", seed=19)
    expected.append(("unused folders", str(root / "extra")))
    write_image(root / "elsewhere" / "n20.png", seed=20)
    (root / "elsewhere" / "n20.txt").write_text(good)
    (root / "more.txt").write_text("C:\\photos\\n20.png\n")
    expected.append(("image paths", "C:/photos/n20.png"))
    assert len(expected) == 20

    findings = check(find_sources(root)).findings
    texts = {found.check: "" for found in findings}
    for found in findings:
        texts[found.check] += "\n".join(found.examples) + "\n"
    unnamed = [(name, example) for name, example in expected if example not in texts[name]]
    assert unnamed == []
    code, out = detrkit_cli(["data", "check", str(root)])
    assert code == 1
    assert all(name in out for name, _ in expected)
    assert "not ready to train" in out


def test_what_the_reader_decided_is_listed_and_not_announced(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    root = coco_tree(tmp_path / "data")

    def move(data: dict[str, list[dict[str, str]]]) -> None:
        data["images"][0]["file_name"] = "/old/a.png"

    edit(root / "annotations" / "instances_train.json", move)
    assert faults(root)["image paths"].examples == ("/old/a.png -> a.png",)
    assert not recwarn.list


def test_boxes_that_cannot_be_used_are_not_counted(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    edit(root / "annotations" / "instances_train.json", lambda data: data["annotations"][0].update(bbox=[1, 1, 0, 5]))
    assert check(find_sources(root)).contents.splits["train"].boxes == len(BOXES["train"]) - 1
