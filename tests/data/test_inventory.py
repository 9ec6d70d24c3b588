"""Published data sets as they are downloaded: what is there, what is missing, and what reading says then."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from detrkit.data import load_dataset
from detrkit.data.doctor import check
from detrkit.data.formats import find_sources
from detrkit.data.inventory import PartState, inventory
from detrkit.data.published_sets import PUBLISHED_SETS
from detrkit.errors import DataError
from tests.data.test_ade20k import ade20k_tree
from tests.data.test_trial_sets import fine_tree
from tests.data.trees import dump, edit, lvis_tree, official_coco_tree, panoptic_tree


def coco_tree(root: Path) -> Path:
    """COCO's boxes and instances as downloaded."""
    official_coco_tree(root)
    for path in root.glob("annotations/panoptic*"):
        path.unlink()
    return root


def packed(path: Path) -> None:
    """Write an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "a")


def problems(name: str, root: Path, task: str | None = None) -> dict[str, PartState]:
    """What is to be mended, by its path."""
    return {state.path: state for state in inventory(name, root, task=task) if state.problem}


def reading(root: Path, *, split: str = "train", task: str = "det") -> str:
    """The error of reading, in one line."""
    with pytest.raises(DataError) as error:
        load_dataset(root, split=split, task=task)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_complete_sets(tmp_path: Path) -> None:
    trees = {"coco": coco_tree, "lvis": lvis_tree, "cityscapes": fine_tree, "ade20k": ade20k_tree}
    assert trees.keys() == PUBLISHED_SETS.keys()
    for name, tree in trees.items():
        assert problems(name, tree(tmp_path / name)) == {}
    states = {state.path: state.state for state in inventory("coco", tmp_path / "coco")}
    assert states["annotations/panoptic_val2017"] == "not needed"
    assert problems("coco", tmp_path / "coco", "pan").keys() == {
        f"annotations/panoptic_{split}2017{ending}" for split in ("train", "val") for ending in ("", ".json")
    }
    assert problems("coco", panoptic_tree(tmp_path / "panoptic", official=True)) == {}
    ade = ade20k_tree(tmp_path / "all" / "ADEChallengeData2016")
    assert problems("ade20k", ade.parent) == {}


@pytest.mark.parametrize("name", PUBLISHED_SETS)
def test_an_empty_folder_lists_the_downloads(tmp_path: Path, name: str) -> None:
    found = problems(name, tmp_path)
    assert found
    for state in found.values():
        assert state.state == "missing"
        assert state.download is not None
        for word in (state.path, state.download.archive, state.download.size, state.download.address):
            assert word in state.message


def test_archives_that_are_not_unpacked(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    for name in ("train2017.zip", "val2017.zip", "annotations_trainval2017.zip"):
        packed(root / name)
    assert {state.state for state in problems("coco", root).values()} == {"packed"}
    assert "instances_train2017.json: not unpacked yet; unpack" in reading(root)
    (root / "train2017.zip").write_bytes(b"PK half")
    assert "the archive is not whole, so download it again: train2017.zip (18 GB" in str(problems("coco", root))
    coco_tree(root)
    assert problems("coco", root) == {}
    shutil.rmtree(root / "val2017")
    message = reading(root, split="val")
    assert "found none of its images" in message
    assert f"val2017: not unpacked yet; unpack {root / 'val2017.zip'} in {root}" in message
    assert len(load_dataset(root).records) == 3
    root = tmp_path / "cityscapes"
    packed(root / "leftImg8bit_trainvaltest.zip")
    packed(root / "gtFine_trainvaltest.zip")
    assert "gtFine/train: not unpacked yet" in reading(root, task="pan")


def test_folders_of_archives(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "coco")
    (root / "annotations_trainval2017").mkdir()
    (root / "annotations").rename(root / "annotations_trainval2017" / "annotations")
    found = problems("coco", root)
    assert {state.state for state in found.values()} == {"misplaced"}
    place = "annotations_trainval2017/annotations/instances_train2017.json"
    assert f"lies in {place} instead; move it to {root / 'annotations/instances_train2017.json'}" in str(found)
    assert place in reading(root)
    root = fine_tree(tmp_path / "cityscapes")
    (root / "gtFine_trainvaltest").mkdir()
    (root / "gtFine").rename(root / "gtFine_trainvaltest" / "gtFine")
    assert "gtFine/train: lies in gtFine_trainvaltest/gtFine/train instead" in reading(root)


def test_images_that_are_half_unpacked(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "coco")
    (root / "train2017" / "b.png").unlink()
    line = "train2017: 1 of 3 images missing, compared with annotations/instances_train2017.json, such as b"
    assert line in problems("coco", root)["train2017"].message
    message = reading(root)
    assert "b.png: image file missing" in message
    assert f"{line}; unpack train2017.zip (18 GB, http://images.cocodataset.org/zips/train2017.zip) again" in message
    report = check(find_sources(root), quick=True)
    assert [line in found.message for found in report.findings if found.check == "image files"] == [True, False]
    assert len(load_dataset(root, on_error="skip").records) == 2
    (root / "annotations" / "instances_val2017.json").write_text('{"images": [')
    assert problems("coco", root)["annotations/instances_val2017.json"].state == "incomplete"


def test_annotations_of_another_year(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "coco")
    path = root / "annotations" / "instances_train2017.json"
    path = path.rename(path.with_name("instances_train2014.json"))
    found = problems("coco", root)
    assert "instances_train2014.json is of another year" in found["annotations/instances_train2017.json"].message
    with pytest.warns(
        UserWarning, match=r"annotations of another year than the images.*train2014\.json with train2017"
    ):
        load_dataset(root)
    edit(path, lambda data: [row.update(file_name=f"COCO_train2014_{row['file_name']}") for row in data["images"]])
    message = reading(root)
    assert "found none of its images such as 'COCO_train2014_a.png'" in message
    assert "instances_train2014.json is of another year" in message


def test_panoptic_files(tmp_path: Path) -> None:
    root = panoptic_tree(tmp_path / "coco", official=True)
    folder = root / "annotations" / "panoptic_train2017"
    next(folder.iterdir()).unlink()
    assert problems("coco", root)["annotations/panoptic_train2017"].state == "incomplete"
    shutil.rmtree(folder)
    message = reading(root, task="pan")
    assert "no such folder with the PNG files of panoptic_train2017.json" in message
    assert "download panoptic_annotations_trainval2017.zip (821 MB" in message
    assert f"then panoptic_train2017.zip in {root / 'annotations'}" in message
    packed(root / "annotations" / "panoptic_train2017.zip")
    line = f"panoptic_train2017: not unpacked yet; unpack {folder}.zip in {root / 'annotations'}"
    assert line in reading(root, task="pan")
    assert [line in state.message for state in problems("coco", root).values()] == [True]
    (folder / "panoptic_train2017").mkdir(parents=True)
    shutil.copy(root / "train2017" / "a.png", folder / "panoptic_train2017")
    assert problems("coco", root)["annotations/panoptic_train2017"].state == "misplaced"


def test_lvis(tmp_path: Path) -> None:
    root = lvis_tree(tmp_path / "lvis")
    states = {state.path: state for state in inventory("lvis", root)}
    assert "made from lvis_v1_val.json" in states["annotations/lvis_v1_minival.json"].message
    for path in (root / "val2017").iterdir():
        path.rename(root / "train2017" / path.name)
    states = {state.path: state for state in inventory("lvis", root)}
    assert states["val2017"].state == "elsewhere"
    assert "2 images" in states["val2017"].message
    assert "lie in train2017 instead" in states["val2017"].message
    with pytest.warns(UserWarning, match="the image with the same name is taken"):
        assert len(load_dataset(root, split="val").records) == 2
    for path in (root / "train2017").glob("e.png"):
        path.unlink()  # a val image of train2017
    assert problems("lvis", root).keys() == {"train2017"}
    with pytest.warns(UserWarning, match="the image with the same name is taken"):
        assert "train2017: 1 of 3 images missing" in reading(root, split="val")
    (root / "annotations" / "lvis_v1_train.json").rename(root / "annotations" / "lvis_v0.5_train.json")
    assert "lvis_v0.5_train.json is of version 0.5" in str(problems("lvis", root))
    packed(root / "lvis_v1_train.json.zip")
    assert f"unpack {root / 'lvis_v1_train.json.zip'} in {root / 'annotations'}" in str(problems("lvis", root))


def test_images_of_lvis_beside_coco(tmp_path: Path) -> None:
    root = lvis_tree(tmp_path / "lvis")
    for year in ("train2017", "val2017"):
        shutil.move(root / year, tmp_path / "coco" / year)
    assert problems("lvis", root) == {}
    assert len(load_dataset(root).records) == 3


def test_cityscapes(tmp_path: Path) -> None:
    root = fine_tree(tmp_path / "data")
    (root / "gtCoarse" / "train" / "ulm").mkdir(parents=True)
    assert problems("cityscapes", root) == {}
    assert {state.path: state.state for state in inventory("cityscapes", root)}["gtCoarse"] == "not read"
    shutil.rmtree(root / "gtFine" / "train" / "ulm")
    message = problems("cityscapes", root)["gtFine/train"].message
    assert "1 of 2 files missing, compared with leftImg8bit/train" in message
    assert "of ulm" in message
    assert "has no label image" in reading(root)
    assert "(1 of 2 photos have none); unpack gtFine_trainvaltest.zip (241 MB" in reading(root, task="pan")
    assert len(load_dataset(root, on_error="skip").records) == 1
    assert check(find_sources(root), quick=True).failed
    shutil.rmtree(root / "leftImg8bit" / "val" / "bonn")
    assert "1 of 2 files missing, compared with gtFine/val" in reading(root, split="val")
    shutil.rmtree(root / "gtFine")
    message = reading(root, task="inst")
    assert "gtCoarse has coarse outlines, which are not the labels of the benchmark; download gtFine_train" in message
    shutil.rmtree(root / "leftImg8bit")
    assert "leftImg8bit/val" in str(problems("cityscapes", root))


def test_ade20k(tmp_path: Path) -> None:
    root = ade20k_tree(tmp_path / "ADEChallengeData2016")
    assert f"Did you mean {root} (ade20k)" in reading(tmp_path, task="sem")
    shutil.rmtree(root / "annotations" / "validation")
    assert "annotations/validation: missing; download ADEChallengeData2016.zip" in reading(
        root, split="val", task="sem"
    )


def test_data_of_ones_own_get_no_such_advice(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    dump(
        root / "annotations" / "train.json",
        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []},
    )
    assert "COCO is" not in reading(root)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.docx").write_text("a")
    assert "no known data set layout" in reading(tmp_path / "other")


def test_unknown_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'citiscapes' is no published data set\. Did you mean 'cityscapes'\?"):
        inventory("citiscapes", tmp_path)
    with pytest.raises(DataError, match="gone: no such data folder"):
        inventory("coco", tmp_path / "gone")


def test_no_torch() -> None:
    code = "import detrkit.data.inventory, sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
