"""Trial sets: the layout of the data folder with a few images, read as the whole is."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from detrkit.data import load_dataset
from detrkit.data.formats import find_source, usual_task
from detrkit.data.trial_sets import cut_trial_set
from detrkit.errors import DataError
from tests.data.test_ade20k import ade20k_tree
from tests.data.test_drawn_formats import EXPORTS
from tests.data.test_gtfine import write
from tests.data.trees import (
    TREES,
    cityscapes_tree,
    coco_tree,
    dump,
    edit,
    instance_files_tree,
    lvis_tree,
    masks_tree,
    official_coco_tree,
    panoptic_tree,
    voc_tree,
    write_image,
    yolo_tree,
)

Tree = Callable[[Path], Path]


def fine_tree(root: Path) -> Path:
    """Cityscapes as downloaded: photos and the four label files of each, of train, val and, without labels, test."""
    for split in ("train", "val", "test"):
        for city in ("ulm", "bonn"):
            name = f"{city}_{split}_000019"
            write_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", (30, 20))
            if split != "test":
                write(root, name, [[7, 26_000], [26_001, 24]], split=split, city=city)
                labels = root / "gtFine" / split / city
                dump(labels / f"{name}_gtFine_polygons.json", {"imgHeight": 2, "objects": []})
                write_image(labels / f"{name}_gtFine_color.png", (30, 20))
    return root


ALL: dict[str, Tree] = {
    **{name: tree for name, tree in TREES.items() if "official" not in name},
    **{name: partial(tree, kind="polygon") for name, (tree, _) in EXPORTS.items()},
    "panoptic": panoptic_tree,
    "masks": masks_tree,
    "instance files": instance_files_tree,
    "ade20k": ade20k_tree,
    "gtFine": fine_tree,
}


@pytest.mark.parametrize("name", ALL)
def test_every_format(tmp_path: Path, name: str) -> None:
    root, out = ALL[name](tmp_path / "data"), tmp_path / "new" / "trial"
    counts = cut_trial_set(root, out, images=1, seed=3)
    for splits in counts.values():
        for split, count in splits.items():
            assert count == 1
            if split == "test":
                continue
            task = usual_task(find_source(root, split))
            part, whole = (load_dataset(folder, split=split, task=task) for folder in (out, root))
            (record,) = part.records
            assert record.path.is_file()
            assert not record.path.is_symlink()
            assert out in record.path.parents
            (same,) = (one for one in whole.records if Path(one.file_name).name == Path(record.file_name).name)
            assert record.segments.boxes.tolist() == same.segments.boxes.tolist()
            names = [
                [data.categories.names[k] for k in one.segments.labels] for data, one in ((part, record), (whole, same))
            ]
            assert names[0] == names[1]


def test_files_of_an_image_come_with_it(tmp_path: Path) -> None:
    root, out = fine_tree(tmp_path / "data"), tmp_path / "out"
    (root / "leftImg8bit_trainvaltest.zip").write_bytes(b"PK")
    cut_trial_set(root, out, images=1)
    for split in ("train", "val"):
        photos = [path.name for path in (out / "leftImg8bit" / split).rglob("*.png")]
        stem = photos[0].removesuffix("_leftImg8bit.png")
        labels = sorted(path.name for path in (out / "gtFine" / split).rglob("*.*"))
        assert len(photos) == 1
        assert labels == [f"{stem}_gtFine_{what}" for what in ("color.png", "instanceIds.png", "polygons.json")]
    assert len(list((out / "leftImg8bit" / "test").rglob("*.png"))) == 1
    assert not (out / "leftImg8bit_trainvaltest.zip").exists()


def test_all_files_of_coco_keep_the_same_images_and_all_else(tmp_path: Path) -> None:
    root, out = panoptic_tree(tmp_path / "data", official=True), tmp_path / "out"
    panoptic_files = {path.name: path.read_text() for path in root.glob("annotations/*.json")}
    official_coco_tree(root)
    for name, text in panoptic_files.items():
        (root / "annotations" / name).write_text(text)
    images = json.loads((root / "annotations" / "instances_train2017.json").read_text())["images"]
    captions = [{"image_id": row["id"], "caption": "a"} for row in images]
    dump(
        root / "annotations" / "captions_train2017.json", {"images": images, "annotations": captions, "info": {"k": 1}}
    )
    old = root / "annotations" / "instances_train2017.json"
    edit(old, lambda data: data.update(licenses=["x"], info={"year": 2017}))
    counts = cut_trial_set(root, out, images=2)
    assert counts == {"coco": {"train": 2, "val": 2}, "coco_panoptic": {"train": 2, "val": 2}}
    names = {path.name for path in (out / "train2017").iterdir()}
    for kind in ("instances", "panoptic", "captions"):
        data = json.loads((out / "annotations" / f"{kind}_train2017.json").read_text())
        assert {row["file_name"] for row in data["images"]} == names
        ids = {row["id"] for row in data["images"]}
        assert {row["image_id"] for row in data["annotations"]} <= ids
    data = json.loads((out / "annotations" / "instances_train2017.json").read_text())
    assert data["licenses"] == ["x"]
    assert data["info"] == {"year": 2017}
    assert data["categories"] == json.loads(old.read_text())["categories"]
    pngs = {path.stem for path in (out / "annotations" / "panoptic_train2017").iterdir()}
    assert pngs == {Path(name).stem for name in names}
    assert len(load_dataset(out, task="pan").records) == 2


def test_lvis_takes_images_of_coco_beside_it_and_minival(tmp_path: Path) -> None:
    root = lvis_tree(tmp_path / "lvis")
    for year in ("train2017", "val2017"):
        (tmp_path / "coco").mkdir(exist_ok=True)
        (root / year).rename(tmp_path / "coco" / year)
    whole = json.loads((root / "annotations" / "lvis_v1_val.json").read_text())
    minival = [row for row in whole["images"] if "val2017" in row["coco_url"]]
    dump(root / "annotations" / "lvis_v1_minival.json", {**whole, "images": minival})
    out = tmp_path / "out" / "lvis"
    cut_trial_set(root, out, images=50)
    assert len(load_dataset(out).records) == 3
    assert {path.name for path in out.rglob("*.png")} == {"a.png", "b.png", "ü c.png", "d.png", "e.png"}
    records = load_dataset(out, split="val", annotations="annotations/lvis_v1_minival.json").records
    assert [record.file_name for record in records] == ["val2017/d.png"]


def test_published_boxes_of_cityscapes_come_along(tmp_path: Path) -> None:
    root, out = cityscapes_tree(tmp_path / "data" / "cityscapes"), tmp_path / "out"
    cut_trial_set(root, out, images=2)
    assert (out / "CocoFormatAnnos" / "cityscapes_train_cocostyle.json").is_file()
    assert len(load_dataset(out).records) == 2


@pytest.mark.parametrize("tree", [yolo_tree, voc_tree])
def test_lists_and_paths_do_not_lead_back(tmp_path: Path, tree: Tree) -> None:
    root, out = tree(tmp_path / "data"), tmp_path / "out"
    if tree is yolo_tree:
        names = [f"{root}/images/train/{path.name}" for path in (root / "images" / "train").iterdir()]
        (root / "train.txt").write_text("".join(f"{name}\n" for name in names))
        (root / "data.yaml").write_text(f"path: {root}\ntrain: train.txt\nval: images/val\nnames: [bolt, nut]\n")
    else:
        (root / "ImageSets" / "Main" / "bolt_train.txt").write_text("a  1\nb -1\nü c -1\n")
    cut_trial_set(root, out, images=1)
    for path in out.rglob("*.*"):
        if path.suffix in (".txt", ".yaml"):
            assert str(root) not in path.read_text(encoding="utf-8")
    assert [out in record.path.parents for record in load_dataset(out).records] == [True]


def test_seed_and_links(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    chosen = set()
    for seed in range(8):
        small, large = tmp_path / f"{seed}s", tmp_path / f"{seed}l"
        cut_trial_set(root, small, images=1, seed=seed)
        cut_trial_set(root, large, images=2, seed=seed, links=True)
        names = [{path.name for path in (out / "images" / "train").iterdir()} for out in (small, large)]
        assert names[0] < names[1]
        chosen |= names[0]
        assert all(path.is_symlink() for path in (large / "images" / "train").iterdir())
    assert len(chosen) > 1


def test_unusable(tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "data")
    with pytest.raises(DataError, match="lies in"):
        cut_trial_set(root, root / "trial")
    with pytest.raises(DataError, match="at least 1 image"):
        cut_trial_set(root, tmp_path / "out", images=0)
    with pytest.raises(DataError, match="no such data folder"):
        cut_trial_set(tmp_path / "gone", tmp_path / "out")
    for path in (root / "images" / "val").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"found none of its images|no image that can be used"):
        cut_trial_set(root, tmp_path / "out")
