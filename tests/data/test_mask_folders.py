"""Folders of PNG masks: class maps by value, palette or colour, one file per object, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.data import load_dataset
from detrkit.data.formats import find_sources, recognise_format
from detrkit.errors import DataError
from detrkit.metrics import score_semantic
from tests.data.test_doctor import faults
from tests.data.trees import BOXES, SIZE, class_map, coco, dump, instance_files_tree, masks_tree, write_image, write_map

COLORS = [[255, 0, 0], [0, 255, 0], [9, 9, 200]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return masks_tree(tmp_path / "data")


def labels_of(root: Path, index: int = 0, **options: Any) -> Any:
    dataset = load_dataset(root, task="sem", **options)
    _, read = dataset.semantic_ground_truth()
    return read(dataset.records[index].image_id).labels


EXPECTED = class_map(BOXES["train"]["a.png"])


def test_class_maps(root: Path) -> None:
    dataset = load_dataset(root, task="sem")
    assert dataset.categories.ids == [0, 1, 2]
    assert dataset.categories.names == ["bolt", "nut", "ground"]
    assert not any(category.is_thing for category in dataset.categories)
    assert np.array_equal(labels_of(root), EXPECTED)
    target = dataset[0].target
    assert target.labels.tolist() == [0, 1, 2]
    assert target.masks is not None
    assert not target.masks[:, :, 0].any(), "255 is ignored"
    assert sorted(find_sources(root)) == ["train", "val"]
    with pytest.raises(DataError, match=r"task 'det' needs classes of things .* task 'sem' or 'pan'"):
        load_dataset(root)


@pytest.mark.parametrize(
    "classes",
    [
        {"0": "bolt", "1": "nut", "2": "ground"},
        {"names": ["bolt", "nut", "ground"]},
        {"classes": [{"id": k, "name": name} for k, name in enumerate(("bolt", "nut", "ground"))], "ignore_index": 255},
    ],
)
def test_forms_of_the_class_list(root: Path, classes: Any) -> None:
    dump(root / "classes.json", classes)
    assert load_dataset(root, task="sem").categories.names == ["bolt", "nut", "ground"]


def test_palette_and_colour_files(root: Path) -> None:
    path = root / "masks" / "train" / "a.png"
    palette = Image.fromarray(EXPECTED.astype(np.uint8), mode="P")
    palette.putpalette([value for color in [*COLORS, *[[0, 0, 0]] * 253] for value in color])
    palette.save(path)
    assert np.array_equal(labels_of(root), EXPECTED)

    write_map(path, EXPECTED * (1 + 256 + 65536), rgb=True)  # gray values in three channels
    assert np.array_equal(labels_of(root), EXPECTED)

    rows = [{"id": k, "name": name, "color": COLORS[k]} for k, name in enumerate(("bolt", "nut", "ground"))]
    dump(root / "classes.json", {"classes": rows})
    colors = np.full((*EXPECTED.shape, 3), 255, np.uint8)
    for label, color in enumerate(COLORS):
        colors[label == EXPECTED] = color
    Image.fromarray(colors).save(path)
    dataset = load_dataset(root, task="sem")
    assert dataset.categories[2].color == (9, 9, 200)
    assert np.array_equal(labels_of(root), EXPECTED)
    assert np.array_equal(labels_of(root, 1), class_map([])), "the other files have numbers"
    colors[3, 4] = (1, 2, 3)
    Image.fromarray(colors).save(path)
    with pytest.raises(DataError, match=r"a\.png: colour \[1, 2, 3\] \(1 pixels\) is that of no class"):
        load_dataset(root, task="sem")


def test_the_value_to_ignore(root: Path) -> None:
    dump(root / "classes.json", {"names": ["bolt", "nut"], "ignore_index": 2})
    path = root / "masks" / "train" / "a.png"
    values = np.where(EXPECTED == 255, 2, EXPECTED)
    for name in ("a", "ü c"):
        write_map(root / "masks" / "train" / f"{name}.png", values)
    with pytest.raises(DataError, match=r"b\.png: value 255 \(30 pixels\) is no class .* \(0 to 1\) .* ignore \(2\)"):
        load_dataset(root, task="sem")
    write_map(path.with_name("b.png"), np.full_like(values, 2))
    with pytest.raises(DataError, match=r"b\.png: has only pixels to ignore"):
        load_dataset(root, task="sem")
    dataset = load_dataset(root, task="sem", on_error="skip")
    assert [record.path.name for record in dataset.records] == ["a.png", "ü c.png"]
    assert len(dataset.load_errors) == 1


def test_a_class_whose_value_is_ignored_has_no_pixels(root: Path) -> None:
    dump(root / "classes.json", {"names": ["bolt", "nut", "ground"], "ignore_index": 2})
    for path in (root / "masks").rglob("*.png"):
        write_map(path, np.where(np.asarray(Image.open(path)) == 255, 2, np.asarray(Image.open(path))))
    with pytest.warns(UserWarning, match=r"whose value is the one to ignore: .* \('ground': 2\)"):
        dataset = load_dataset(root, task="sem", on_error="skip")
    assert dataset[0].target.labels.tolist() == [0, 1]
    assert np.array_equal(labels_of(root, on_error="skip"), np.where(EXPECTED == 2, 255, EXPECTED))
    with pytest.warns(UserWarning, match="2 is the value of class 'ground' and the value to ignore"):
        score = score_semantic(root / "masks", root / "masks", root / "classes.json")
    assert score.to_json()["per_class"]["ground"]["IoU"] is None, "scores and training ignore the same"


def test_the_white_of_black_and_white_masks_is_not_ignored_in_silence(root: Path) -> None:
    dump(root / "classes.json", ["ground", "nut"])
    for path in (root / "masks").rglob("*.png"):
        write_map(path, np.where(np.asarray(Image.open(path)) == 1, 255, 0))
    with pytest.warns(UserWarning, match=r'If masks are black and white, .* \{"0": "ground", "255": "nut"\}'):
        assert load_dataset(root, task="sem")[0].target.labels.tolist() == [0]
    assert ("warning", "one class", "train") in faults(root)
    dump(root / "classes.json", {"0": "ground", "255": "nut"})
    assert load_dataset(root, task="sem")[0].target.labels.tolist() == [0, 1]
    assert score_semantic(root / "masks", root / "masks", root / "classes.json").metrics["mIoU"] == 1.0
    assert ("warning", "one class", "train") not in faults(root)


@pytest.mark.parametrize("colors", [([0, 0, 0], [9, 9, 9], [9, 9, 9]), (None, [9, 9, 9], [0, 0, 0])])
def test_two_classes_of_one_colour(root: Path, colors: Any) -> None:
    rows = [{"id": k, "name": f"class {k}", "color": color} for k, color in enumerate(colors)]
    dump(root / "classes.json", {"classes": rows})
    assert load_dataset(root, task="sem").categories.ids == [0, 1, 2], "files with numbers do not need colours"
    write_map(root / "masks" / "train" / "a.png", np.zeros_like(EXPECTED), rgb=True)
    with pytest.raises(DataError, match=r"classes\.json: 'class \d' and 'class 2' have one colour in masks of RGB"):
        load_dataset(root, task="sem")


def test_a_shape_in_the_transparency_alone(root: Path) -> None:
    pixels = np.full((*EXPECTED.shape, 4), 255, np.uint8)
    write = Image.fromarray
    write(pixels).save(root / "masks" / "train" / "a.png")  # without one: all of it is void
    with pytest.raises(DataError, match=r"a\.png: has only pixels to ignore"):
        load_dataset(root, task="sem")
    pixels[..., 3] = EXPECTED
    write(pixels).save(root / "masks" / "train" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: has one colour alone and a shape in its transparency"):
        load_dataset(root, task="sem")


def test_letter_case_of_endings_does_not_matter(root: Path) -> None:
    for name in ("a.png", "b.png"):
        path = root / "masks" / "train" / name
        path.rename(path.with_suffix(".PNG" if name == "a.png" else ".Png"))
    assert np.array_equal(labels_of(root), EXPECTED)


def test_images_that_share_a_mask(root: Path) -> None:
    write_image(root / "images" / "train" / "a.jpg", seed=9)
    with pytest.warns(UserWarning, match=r"mask of another, .* \(a\.jpg \(a\.png is used\)\)"):
        assert len(load_dataset(root, task="sem")) == 3


def test_one_class_alone_is_a_warning(root: Path) -> None:
    dump(root / "classes.json", {"classes": [{"id": 1, "name": "nut"}], "ignore_index": 255})
    for name, boxes in BOXES["train"].items():
        values = class_map(boxes)
        write_map(root / "masks" / "train" / name, np.where(values == 1, 1, 255))
    with pytest.warns(UserWarning, match="'nut' is the only class, .* give the background a class"):
        load_dataset(root, task="sem", on_error="skip")


def test_no_class_list(root: Path) -> None:
    (root / "classes.json").unlink()
    with pytest.raises(DataError) as error:
        load_dataset(root, task="sem")
    said = str(error.value)
    assert "classes.json: no such file" in said
    example = said[said.index('{"classes"') :]
    dump(root / "classes.json", json.loads(example))
    assert load_dataset(root, task="sem").categories.ids == [0, 1, 2]


def test_masks_that_do_not_fit(root: Path) -> None:
    path = root / "masks" / "train" / "a.png"
    write_map(path, EXPECTED[:-1])
    with pytest.raises(DataError, match=r"a\.png: the mask is 40x29 pixels but a\.png is 40x30"):
        load_dataset(root, task="sem")
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png: has no mask; looked for .*a\.png and the folder .*/a\. Correct it"):
        load_dataset(root, task="sem")
    Image.fromarray(EXPECTED.astype(np.uint8)).save(path.with_suffix(".jpg"))
    with pytest.raises(DataError, match=r"a\.jpg: masks must be PNG files; JPEG .* change the values"):
        load_dataset(root, task="sem")
    (root / "masks" / "train" / "a.jpg").rename(path)
    with pytest.raises(DataError, match=r"a\.png: is not a PNG file"):
        load_dataset(root, task="sem")
    dataset = load_dataset(root, task="sem", on_error="skip")
    assert len(dataset) == 2
    assert len(dataset.load_errors) == 1


@pytest.mark.parametrize("upright", [True, False])
def test_an_image_with_exif_rotation(root: Path, upright: bool) -> None:
    image = Image.new("RGB", SIZE, (0, 0, 0))
    image.paste((255, 255, 255), (4, 3, 14, 15))
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "images" / "train" / "a.png").unlink()
    image.save(root / "images" / "train" / "a.jpg", exif=exif, quality=98)
    values = EXPECTED[::-1].T if upright else EXPECTED  # a quarter turn to the right
    write_map(root / "masks" / "train" / "a.png", values)
    sample = load_dataset(root, task="sem")[0]
    assert sample.target.masks is not None
    bolt = sample.target.masks[0]
    assert tuple(sample.image.shape[1:]) == tuple(bolt.shape)
    assert (bolt.shape[0] > bolt.shape[1]) is upright
    bright = sample.image[0] > 0
    assert (bright & bolt).sum() / (bright | bolt).sum() > 0.95


def test_lists_of_splits(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / "images" / f"{number}.jpg")
        write_map(tmp_path / "masks" / f"{number}.png", EXPECTED)
    dump(tmp_path / "classes.json", ["bolt", "nut", "ground"])
    assert len(load_dataset(tmp_path, task="sem")) == 4, "without lists all is train"
    assert list(find_sources(tmp_path)) == ["train"]
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "val.txt").write_text("3.jpg\n")
    with pytest.raises(DataError, match="no train split"):
        load_dataset(tmp_path, task="sem")
    (tmp_path / "train.txt").write_text("0\n\n2.jpg\n")
    names = {
        split: [r.path.name for r in load_dataset(tmp_path, split=split, task="sem").records]
        for split in ("train", "val")
    }
    assert names == {"train": ["0.jpg", "2.jpg"], "val": ["3.jpg"]}
    (tmp_path / "train.txt").write_text("9\n")
    with pytest.raises(DataError, match=r"train\.txt: names 9, which is not in the folder images"):
        load_dataset(tmp_path, task="sem")


def test_one_file_per_object(tmp_path: Path) -> None:
    root = instance_files_tree(tmp_path / "data")
    dataset = load_dataset(root, task="inst")
    assert dataset.records[0].labels.tolist() == [0, 1]
    target = dataset[0].target
    assert target.masks is not None
    assert target.masks.shape[0] == 2
    folder = root / "masks" / "train" / "a"
    (folder / "nut_1.png").rename(folder / "1.png")
    with pytest.raises(DataError, match=r"1\.png: of which class is it\? .* \(classes of .*: bolt, nut\)"):
        load_dataset(root, task="inst")
    (folder / "nut").mkdir()
    (folder / "1.png").rename(folder / "nut" / "1.png")
    assert sorted(load_dataset(root, task="inst").records[0].labels.tolist()) == [0, 1]
    write_map(folder / "bolt_0.png", np.ones((5, 5)))
    with pytest.raises(DataError, match=r"bolt_0\.png: the mask is 5x5 pixels but the image 40x30"):
        load_dataset(root, task="inst")


def test_the_longest_name_is_the_class_of_an_object(tmp_path: Path) -> None:
    root = instance_files_tree(tmp_path / "data")
    dump(root / "classes.json", ["nut", "bolt", "bolt_big"])
    folder = root / "masks" / "train" / "a"
    (folder / "bolt_0.png").rename(folder / "bolt_big_0.png")
    assert sorted(load_dataset(root, task="inst").records[0].labels.tolist()) == [0, 2]


def test_objects_that_may_be_inverted_and_masks_that_are_not_used(tmp_path: Path) -> None:
    root = instance_files_tree(tmp_path / "data")
    folder = root / "masks" / "train" / "a"
    load_dataset(root, task="inst")  # nothing to say
    mask = np.asarray(Image.open(folder / "bolt_0.png"))
    write_map(folder / "bolt_0.png", mask == 0)
    with pytest.warns(UserWarning, match=r"all four corners of their image.*bolt_0\.png"):
        load_dataset(root, task="inst")
    write_map(folder / "bolt_0.png", mask)
    write_map(folder.with_suffix(".png"), mask != 0)
    with pytest.warns(UserWarning, match=r"folder of objects with their name, which alone is used.*a\.png"):
        load_dataset(root, task="inst")


def test_object_files_that_are_not_black_and_white_png(tmp_path: Path) -> None:
    root = instance_files_tree(tmp_path / "data")
    path = root / "masks" / "train" / "a" / "bolt_0.png"
    mask = np.asarray(Image.open(path))
    write_map(path, (mask != 0) * (1 + np.arange(mask.shape[1]) // 9))
    with pytest.warns(UserWarning, match=r"several values: all but 0 is the object.*bolt_0\.png"):
        load_dataset(root, task="inst")
    Image.fromarray(mask).convert("L").save(path.with_suffix(".jpg"))
    with pytest.raises(DataError, match=r"bolt_0\.jpg: masks must be PNG files"):
        load_dataset(root, task="inst")


@pytest.mark.parametrize("upright", [True, False])
def test_objects_of_an_image_with_exif_rotation(tmp_path: Path, upright: bool) -> None:
    root = instance_files_tree(tmp_path / "data")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / "images" / "train" / "a.png") as image:
        image.save(root / "images" / "train" / "a.jpg", exif=exif)
    (root / "images" / "train" / "a.png").unlink()
    for path in (root / "masks" / "train" / "a").glob("*.png"):
        mask = np.asarray(Image.open(path))
        write_map(path, mask[::-1].T if upright else mask)
    sample = load_dataset(root, task="inst")[0]
    assert sample.target.masks is not None
    assert tuple(sample.image.shape[1:]) == tuple(sample.target.masks.shape[1:])
    assert (sample.image.shape[1] > sample.image.shape[2]) is upright


def test_which_format_a_folder_has(root: Path) -> None:
    assert recognise_format(root, task="det").name == "masks"
    dump(root / "annotations" / "instances_train.json", coco("train"))
    assert recognise_format(root, task="det").name == "coco"
    assert recognise_format(root, task="sem").name == "masks"


def test_real_class_maps(shared: Path) -> None:
    dataset = load_dataset(shared / "data" / "aerial_sem", split="val", task="sem")
    assert dataset.categories.names == ["building", "land_unpaved", "road", "vegetation", "water"]
    _, read = dataset.semantic_ground_truth()
    record = dataset.records[0]
    path = shared / "data" / "aerial_sem" / "masks" / "val" / f"{record.path.stem}.png"
    assert np.array_equal(read(record.image_id).labels, np.asarray(Image.open(path)))
