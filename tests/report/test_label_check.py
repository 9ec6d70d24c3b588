"""Before a training: planted faults of the labels are found without a model, and sound sets are met with silence."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from detrkit.cli.main import run as command
from detrkit.config import load_recipe
from detrkit.data import load_dataset
from detrkit.data.doctor import check
from detrkit.data.formats import find_sources
from detrkit.data.once import annotation_cache, read_once
from detrkit.report.label_check import label_doubts
from tests.cli.test_first_touch import HEAVY, PROGRAM
from tests.cli.test_main import SOURCE

WIDTH, HEIGHT = 480, 360
SIDES = {1: (60, 60), 2: (30, 70), 3: (90, 34)}  # of the classes
Split = dict[str, Any]


def drawn(root: Path, seed: int, *, images: int = 24) -> dict[str, Split]:
    """Rectangles of three shapes on noise, with their labels."""
    rng, content = np.random.default_rng(seed), {}
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        rows: list[dict[str, Any]] = []
        for number in range(1, images + 1):
            picture = Image.fromarray(rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8))
            canvas = ImageDraw.Draw(picture)
            for column, line in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)):
                kind = int(rng.choice(3, p=[0.5, 0.3, 0.2])) + 1
                w, h = (int(side + rng.integers(-6, 7)) for side in SIDES[kind])
                x, y = 160 * column + int(rng.integers(2, 160 - w)), 180 * line + int(rng.integers(2, 180 - h))
                canvas.rectangle([x, y, x + w - 1, y + h - 1], fill=(30, 200, 40 * kind))
                row = {"image_id": number, "category_id": kind, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                rows.append({"id": len(rows) + 1, **row})
            picture.save(root / "images" / split / f"{number}.png")
        listed = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(1, images + 1)]
        categories = [{"id": number, "name": f"kind {number}"} for number in SIDES]
        content[split] = {"images": listed, "annotations": rows, "categories": categories}
    return content


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Split]]:
    root = tmp_path_factory.mktemp("sound")
    return root, drawn(root, 3)


def with_boxes(read: Callable[[list[float]], list[float]]) -> Callable[[Split], None]:
    def change(split: Split) -> None:
        for row in split["annotations"]:
            row["bbox"] = read(row["bbox"])

    return change


def with_ids(read: Callable[[int], int]) -> Callable[[Split], None]:
    def change(split: Split) -> None:
        for row in split["annotations"]:
            row["category_id"] = read(row["category_id"])

    return change


def crowd(split: Split) -> None:
    for row in split["annotations"]:
        row["iscrowd"] = int(row["category_id"] == 2)


def next_image(split: Split) -> None:
    for row in split["annotations"]:
        row["image_id"] = row["image_id"] % len(split["images"]) + 1


def in_some(read: Callable[[list[float]], list[float]]) -> Callable[[Split], None]:
    def change(split: Split) -> None:
        for row in split["annotations"]:
            row["bbox"] = row["bbox"] if row["image_id"] % 3 else read(row["bbox"])

    return change


def empty(split: Split) -> None:
    split["annotations"] = []


def percent(box: list[float]) -> list[float]:
    return [side / whole * 100 for side, whole in zip(box, (WIDTH, HEIGHT, WIDTH, HEIGHT), strict=True)]


BOTH, TRAIN, VAL = ("train", "val"), ("train",), ("val",)
FAULTS: dict[str, tuple[Callable[[Split], None], tuple[str, ...], str]] = {
    "ids from 0": (with_ids(lambda number: number - 1), BOTH, "add 1 to every category_id"),
    "ids from 2": (with_ids(lambda number: number + 1), TRAIN, "add -1 to every category_id"),
    "valid ids off by one": (with_ids(lambda number: number % 3 + 1), VAL, "ids that are off by one?"),
    "the same the other way": (with_ids(lambda number: (number + 1) % 3 + 1), TRAIN, "ids that are off by one?"),
    "half the size": (with_boxes(lambda box: [side / 2 for side in box]), BOTH, "drawn on smaller pictures?"),
    "twice the size": (with_boxes(lambda box: [side * 2 for side in box]), BOTH, "drawn on larger pictures?"),
    "fractions": (with_boxes(lambda box: [side / WIDTH for side in box]), BOTH, "multiply them by width"),
    "corners": (with_boxes(lambda box: [*box[:2], box[0] + box[2], box[1] + box[3]]), BOTH, "read as [x1, y1, x2, y2]"),
    "swapped": (with_boxes(lambda box: [box[1], box[0], box[3], box[2]]), BOTH, "read as [y, x, height, width]"),
    "corners, swapped": (
        with_boxes(lambda box: [box[1], box[0], box[1] + box[3], box[0] + box[2]]),
        BOTH,
        "read as [y1, x1, y2, x2]",
    ),
    "corners in some images": (
        in_some(lambda box: [*box[:2], box[0] + box[2], box[1] + box[3]]),
        BOTH,
        "all of these 8 images fit when read as [x1, y1, x2, y2]",
    ),
    "fractions in some images": (in_some(lambda box: [side / WIDTH for side in box]), TRAIN, "the numbers of 33% of"),
    "percent": (with_boxes(percent), BOTH, "a hundredth of width and height"),
    "middles": (with_boxes(lambda b: [b[0] + b[2] / 2, b[1] + b[3] / 2, *b[2:]]), BOTH, "the middle of the box"),
    "mirrored": (with_boxes(lambda box: [WIDTH - box[0] - box[2], *box[1:]]), BOTH, "only by chance"),
    "those of the next image": (next_image, TRAIN, "only by chance"),
    "all outside": (with_boxes(lambda box: [box[0] + 2000, *box[1:]]), BOTH, "completely outside"),
    "one class only crowd": (crowd, BOTH, "boxes all have iscrowd 1"),
    "empty labels": (empty, BOTH, "images without boxes"),
    "empty validation labels": (empty, VAL, "images without boxes"),
}


def planted(root: Path, sound: tuple[Path, dict[str, Split]], fault: str) -> Path:
    change, splits, _ = FAULTS[fault]
    content = copy.deepcopy(sound[1])
    for split in splits:
        change(content[split])
    return written(root, sound[0] / "images", content)


def written(root: Path, images: Path, content: dict[str, Split]) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "images").symlink_to(images, target_is_directory=True)
    for split, rows in content.items():
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(rows))
    return root


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(tmp_path: Path, sound: tuple[Path, dict[str, Split]], fault: str) -> None:
    data = planted(tmp_path / "data", sound, fault)
    doubts = label_doubts(load_recipe({}, {"data.root": str(data)}), "det")
    assert any(FAULTS[fault][2] in doubt.text for doubt in doubts), doubts
    assert doubts[0].stops


def in_yolo(root: Path, sound: tuple[Path, dict[str, Split]], numbers: Callable[..., list[float]]) -> Path:
    """The sound set as a YOLO folder whose rows have these numbers of x1, y1, x2, y2 in [0, 1]."""
    for split, content in sound[1].items():
        (root / "labels" / split).mkdir(parents=True)
        for image in content["images"]:
            boxes = [row["bbox"] for row in content["annotations"] if row["image_id"] == image["id"]]
            corners = [(x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT) for x, y, w, h in boxes]
            lines = [" ".join(map(str, (0, *numbers(*corner)))) for corner in corners]
            (root / "labels" / split / f"{image['id']}.txt").write_text("\n".join(lines))
    (root / "images").symlink_to(sound[0] / "images", target_is_directory=True)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [kind]\n")
    return root


def in_voc(root: Path, sound: tuple[Path, dict[str, Split]], numbers: Callable[..., list[float]]) -> Path:
    """The training images as a folder of VOC whose bndbox has these numbers of x1, y1, x2, y2 in pixels from 1."""
    root.mkdir()
    content = sound[1]["train"]
    for image in content["images"]:
        name = f"{image['id']}.png"
        (root / name).symlink_to(sound[0] / "images" / "train" / name)
        boxes = [row["bbox"] for row in content["annotations"] if row["image_id"] == image["id"]]
        objects = ""
        for x, y, w, h in boxes:
            values = zip(("xmin", "ymin", "xmax", "ymax"), numbers(x + 1, y + 1, x + w, y + h), strict=True)
            inner = "".join(f"<{key}>{value}</{key}>" for key, value in values)
            objects += f"<object><name>kind</name><bndbox>{inner}</bndbox></object>"
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
        (root / f"{image['id']}.xml").write_text(xml)
    return root


OTHER_FORMATS: dict[str, tuple[Callable[..., Path], Callable[..., list[float]], str | None]] = {
    "YOLO": (in_yolo, lambda a, b, c, d: [(a + c) / 2, (b + d) / 2, c - a, d - b], None),
    "YOLO, corners": (in_yolo, lambda a, b, c, d: [a, b, c, d], "read as [x1, y1, x2, y2] instead of the middle"),
    "YOLO, corner": (in_yolo, lambda a, b, c, d: [a, b, c - a, d - b], "read as the corner of the box instead of its"),
    "VOC": (in_voc, lambda a, b, c, d: [a, b, c, d], None),
    "VOC, sizes": (in_voc, lambda a, b, c, d: [a, b, c - a, d - b], "read as [x, y, width, height] instead of [x1,"),
    "VOC, middle": (in_voc, lambda a, b, c, d: [(a + c) / 2, (b + d) / 2, c - a, d - b], "the middle and size of"),
    "VOC, swapped": (in_voc, lambda a, b, c, d: [b, a, d, c], "read as [y1, x1, y2, x2]"),
    "VOC, exchanged": (in_voc, lambda a, b, c, d: [c, d, a, b], "read as [x2, y2, x1, y1]"),
    "VOC, fractions": (in_voc, lambda a, b, c, d: [a / 480, b / 360, c / 480, d / 360], "lie between 0 and 1"),
}


@pytest.mark.parametrize("case", OTHER_FORMATS)
def test_boxes_are_read_as_their_format_writes_them(
    tmp_path: Path, sound: tuple[Path, dict[str, Split]], case: str
) -> None:
    write, numbers, said = OTHER_FORMATS[case]
    options = {"data.root": str(write(tmp_path / "data", sound, numbers)), "training.evaluate_every": 0}
    doubts = label_doubts(load_recipe({}, options), "det")
    frames = [one.text for one in doubts if one.stops and "box frame of train" in one.text]
    assert [said in text for text in frames if said] == ([True] if said else []), doubts
    assert said is not None or not any(one.stops for one in doubts)


def test_wrong_sizes_of_images_and_boxes_without_any_number_are_no_other_frame(
    tmp_path: Path, sound: tuple[Path, dict[str, Split]]
) -> None:
    sizes, zeros = copy.deepcopy(sound[1]), copy.deepcopy(sound[1])
    for split in sizes.values():
        for image in split["images"]:
            image["width"], image["height"] = HEIGHT, WIDTH
    for split in zeros.values():
        with_boxes(lambda box: [0.0] * 4)(split)
    for name, content, fault in (("sizes", sizes, "image sizes of train"), ("zeros", zeros, "box values of train")):
        data = written(tmp_path / name, sound[0] / "images", content)
        texts = [one.text for one in label_doubts(load_recipe({}, {"data.root": str(data)}), "det") if one.stops]
        assert any(text.startswith(fault) for text in texts)
        assert not any("box frame" in text for text in texts)


def test_a_set_with_many_images_of_background_is_no_fault(tmp_path: Path, sound: tuple[Path, dict[str, Split]]) -> None:
    content = copy.deepcopy(sound[1])
    for split in content.values():
        split["annotations"] = [row for row in split["annotations"] if row["image_id"] % 3 == 0]
    data = written(tmp_path / "data", sound[0] / "images", content)
    doubts = label_doubts(load_recipe({}, {"data.root": str(data)}), "det")
    assert {one.text.split(":")[0] for one in doubts} >= {"empty images of train"}
    assert not any(one.stops for one in doubts)


def test_boxes_that_are_all_left_out_are_a_fault(tmp_path: Path, sound: tuple[Path, dict[str, Split]]) -> None:
    data = planted(tmp_path / "data", sound, "all outside")
    doubts = label_doubts(load_recipe({}, {"data.root": str(data), "data.on_error": "skip"}), "det")
    assert {"no objects of train: none of its labels can be used"} <= {one.text for one in doubts if one.stops}
    assert not any("box reach" in one.text for one in doubts)


@pytest.mark.parametrize("task", ["det", "inst"])
def test_labels_are_read_as_the_training_reads_them(
    tmp_path: Path, sound: tuple[Path, dict[str, Split]], task: str
) -> None:
    content = copy.deepcopy(sound[1])
    for row in (row for split in content.values() for row in split["annotations"]):
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    data = written(tmp_path / "data", sound[0] / "images", content)
    recipe = load_recipe({}, {"data.root": str(data), "data.sample_rate": 0.5, "data.sample_seed": 3})
    with read_once():
        label_doubts(recipe, task)
        kept = set(annotation_cache())
        load_dataset(data, task=task, sample_rate=0.5, sample_seed=3)
        load_dataset(data, split="val", task=task, sample_seed=3)
        assert set(annotation_cache()) == kept


@pytest.mark.parametrize(
    ("task", "on_error", "stops"), [("det", "raise", 0), ("inst", "raise", 2), ("inst", "skip", 0)]
)
def test_faults_of_masks_stop_what_reads_them(
    tmp_path: Path, sound: tuple[Path, dict[str, Split]], task: str, on_error: str, stops: int
) -> None:
    content = copy.deepcopy(sound[1])
    for split in content.values():
        for row in split["annotations"]:
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        split["annotations"][0]["segmentation"] = [[1, 1, 2]]
    data = written(tmp_path / "data", sound[0] / "images", content)
    doubts = label_doubts(load_recipe({}, {"data.root": str(data), "data.on_error": on_error}), task)
    assert [one.text.split(" of ")[0] for one in doubts] == ["mask values"] * 2
    assert sum(one.stops for one in doubts) == stops


def test_a_sound_set_is_met_with_silence(tmp_path: Path, sound: tuple[Path, dict[str, Split]]) -> None:
    data = written(tmp_path / "data", sound[0] / "images", sound[1])
    assert label_doubts(load_recipe({}, {"data.root": str(data)}), "det") == []


@pytest.mark.parametrize("name", ["blood_cells_det", "nuts_inst", pytest.param("nuclei_inst", marks=pytest.mark.slow)])
def test_real_sets_are_met_with_silence(shared: Path, name: str) -> None:
    task = "det" if name.endswith("det") else "inst"
    assert label_doubts(load_recipe({}, {"data.root": str(shared / "data" / name)}), task) == []


def test_the_command_ends_before_it_loads_a_model(
    tmp_path: Path, sound: tuple[Path, dict[str, Split]], capfd: pytest.CaptureFixture[str]
) -> None:
    data = planted(tmp_path / "data", sound, "ids from 0")
    assert command(["train", "--data", str(data), "--check", "--output", str(tmp_path / "run")]) == 1
    said = capfd.readouterr().err
    assert "fault: category ids of train" in said
    assert "not ready to train: 2 faults of the labels" in said
    assert not list(tmp_path.glob("run*"))
    assert command(["train", "--data", str(data), "--check", "--resume"]) == 2
    for minutes in ("0", "nan", "inf"):
        assert command(["train", "--data", str(data), "--check", "--minutes", minutes]) == 2
        assert f"--minutes {minutes}: give the four images a time above 0" in capfd.readouterr().err
    shutil.rmtree(data / "annotations")
    assert command(["train", "--data", str(data), "--check"]) == 2


def test_labels_are_checked_without_torch(tmp_path: Path, sound: tuple[Path, dict[str, Split]]) -> None:
    data = planted(tmp_path / "data", sound, "mirrored")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    words = [sys.executable, "-c", PROGRAM.format(heavy=HEAVY), "train", "--data", str(data), "--check"]
    found = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert "not ready to train: 1 fault" in found.stderr
    assert "loaded:\n" in found.stderr


def test_large_ids_and_few_boxes_are_no_signs(tmp_path: Path, sound: tuple[Path, dict[str, Split]]) -> None:
    """Large ids are compared as any others; five boxes prove nothing."""
    content = copy.deepcopy(sound[1])
    for split in content.values():
        for row in split["categories"]:
            row["id"] += 2**50
        for row in split["annotations"]:
            row["category_id"] += 2**50
    for row in content["val"]["annotations"]:
        row["category_id"] = 2**50 + (row["category_id"] - 2**50) % 3 + 1
    report = check(find_sources(written(tmp_path / "large", sound[0] / "images", content)), quick=True)
    assert [one.check for one in report.findings if one.level != "ok"] == ["class ids"]
    content["val"]["annotations"] = content["val"]["annotations"][:5]
    report = check(find_sources(written(tmp_path / "few", sound[0] / "images", content)), quick=True)
    assert "class ids" not in [one.check for one in report.findings if one.level != "ok"]
