"""A working folder in miniature with everything that commands of the README, documentation and recipes name."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detrkit.config import load_recipe
from detrkit.structures import Categories, PanopticMap, Segment
from tests.data.test_ade20k import ade20k_tree
from tests.data.trees import lvis_tree, masks_tree, outlines_tree, panoptic_tree

ROOT = Path(__file__).resolve().parents[1]

# A DE-DETR of the same code paths that builds, trains and saves in a moment.
TINY_MODEL = {
    "backbone": "test_resnet",
    "hidden_dim": 32,
    "num_heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn_dim": 32,
}
# Laid over a training or evaluation: one optimizer step, small images, no weights from elsewhere.
SMALL_RUN = {
    "logging.plots": False,
    "logging.estimate": False,
    "training.iterations": 1,
    "training.batch_size": 2,
    "training.accumulate": 1,
    "training.workers": 0,
    "training.device": "cpu",
    "model.pretrained_backbone": False,
    "model.backbone_weights": None,
    "data.short_sides": [64],
    "data.max_side": 96,
    "data.eval_short_side": 64,
    "data.eval_max_side": 96,
}
MY_CLASSES = {1: "nut", 7: "bolt"}
# 80 classes with ids from 1 to 90, as COCO has them
COCO = {number: f"class {number}" for number in range(1, 91) if number not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}}
COCO |= {1: "person", 3: "car", 90: "toothbrush"}
CITYSCAPES = ("person", "car", "train", "rider", "truck", "motorcycle", "bicycle", "bus")
# label id of the class in gtFine, in the order above
CITYSCAPES_LABELS = (24, 26, 31, 25, 27, 32, 33, 28)


@dataclass(frozen=True)
class Split:
    """Images to make: their names, the folder for the files, the JSON file for the annotations."""

    names: tuple[str, ...]
    images: Path
    annotations: Path
    first_id: int = 1


def _picture(path: Path, seed: int, size: tuple[int, int] = (96, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def coco_split(split: Split, classes: dict[int, str], shown: Iterable[int] | None = None) -> None:
    """Images with one box of every class each (or of those that are ``shown``), and their COCO file."""
    images, annotations = [], []
    for offset, name in enumerate(split.names):
        image_id = split.first_id + offset
        _picture(split.images / name, image_id)
        images.append({"id": image_id, "file_name": name, "width": 96, "height": 64})
        for index, category in enumerate(classes if shown is None else shown):
            x, y = 4 + 9 * index, 6 + offset
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, 20, 30],
                    "segmentation": [[x, y, x + 20, y, x + 20, y + 30, x, y + 30]],
                    "area": 600,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in classes.items()]
    _write_json(split.annotations, {"images": images, "annotations": annotations, "categories": categories})


def make_data(folder: Path) -> None:
    """``data/`` with the trees of the DE-DETR repository: COCO, Cityscapes (photos, gtFine) and CocoFormatAnnos."""
    extra = folder / "CocoFormatAnnos"
    coco = folder / "coco"
    train = tuple(f"{number:012d}.jpg" for number in range(1, 7))
    train_file = coco / "annotations/instances_train2017.json"
    coco_split(Split(train, coco / "train2017", train_file), COCO, (1, 3, 90))
    val = ("000000000009.jpg", "000000000010.jpg")
    coco_split(Split(val, coco / "val2017", coco / "annotations/instances_val2017.json", 9), COCO, (1, 3, 90))
    whole = json.loads(train_file.read_text(encoding="utf-8"))
    # like the real file: a crowd, and a box without size
    whole["annotations"][0]["iscrowd"] = 1
    whole["annotations"][1]["bbox"][2] = 0
    _write_json(train_file, whole)
    for count in (11828, 5914, 2365, 1182):
        # like the published files: fewer images, all annotations
        _write_json(extra / f"instances_train2017_sample{count}.json", {**whole, "images": whole["images"][:4]})
    classes = dict(enumerate(CITYSCAPES, start=1))
    photos = folder / "cityscapes" / "leftImg8bit"
    for split, city, count, first in (("train", "aachen", 4, 1), ("val", "munster", 2, 11)):
        stems = [f"{city}/{city}_{number:06d}_000019" for number in range(count)]
        names = tuple(f"{stem}_leftImg8bit.png" for stem in stems)
        coco_split(Split(names, photos / split, extra / f"cityscapes_{split}_cocostyle.json", first), classes)
        for stem in stems:
            ids = np.zeros((64, 96), dtype=np.uint16)
            for index, label in enumerate(CITYSCAPES_LABELS):
                ids[8:40, 2 + 11 * index : 10 + 11 * index] = label * 1000
            path = folder / "cityscapes" / "gtFine" / split / f"{stem}_gtFine_instanceIds.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(path)


def make_voc(folder: Path) -> None:
    """A Pascal VOC folder with a train and a val list."""
    for number, split in enumerate(("train", "train", "val")):
        _picture(folder / "JPEGImages" / f"{number}.jpg", 50 + number)
        box = "<xmin>5</xmin><ymin>6</ymin><xmax>40</xmax><ymax>50</ymax>"
        xml = (
            f"<annotation><filename>{number}.jpg</filename><size><width>96</width><height>64</height><depth>3</depth>"
            f"</size><object><name>cell</name><difficult>0</difficult><bndbox>{box}</bndbox></object></annotation>"
        )
        path = folder / "Annotations" / f"{number}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(xml, encoding="utf-8")
        lists = folder / "ImageSets" / "Main" / f"{split}.txt"
        lists.parent.mkdir(parents=True, exist_ok=True)
        with lists.open("a", encoding="utf-8") as file:
            file.write(f"{number}\n")


def make_maps(folder: Path) -> None:
    """Panoptic and semantic ground truth with results: two images of a bolt on a table."""
    categories: list[Any] = [{"id": 1, "name": "bolt", "isthing": 1}, {"id": 2, "name": "table", "isthing": 0}]
    for name, width in (("panoptic_val", 20), ("panoptic", 24)):
        annotations = []
        for number in (1, 2):
            ids = np.full((64, 96), 300)
            ids[10:30, 10 : 10 + width] = 7
            PanopticMap(ids, (Segment(7, 0), Segment(300, 1)), Categories.from_json(categories)).to_png(
                _ready(folder / name / f"{number}.png")
            )
            segments = [{"id": 7, "category_id": 1}, {"id": 300, "category_id": 2}]
            annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
            classes = np.where(ids == 7, 0, 1).astype(np.uint8)
            Image.fromarray(classes).save(_ready(folder / ("masks" if width == 20 else "semantic") / f"{number}.png"))
        images = [{"id": number, "file_name": f"{number}.jpg", "width": 96, "height": 64} for number in (1, 2)]
        content = {"images": images, "categories": categories, "annotations": annotations}
        _write_json(folder / f"{name}.json", content)
    _write_json(folder / "classes.json", ["bolt", "table"])


def _ready(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def make_checkpoints(folder: Path) -> None:
    """Tiny trained-looking models of ``my_data``, Cityscapes and COCO, and an official-looking full-size DETR file."""
    import detrkit

    torch.manual_seed(0)
    cityscapes = dict(enumerate(CITYSCAPES, start=1))
    for path, name, classes in (
        ("runs/mine/best/model.safetensors", "dela_detr_lite0", MY_CLASSES),
        ("dela_detr.safetensors", "dela_detr_r50", cityscapes),
        ("dela_conditional_detr.safetensors", "dela_conditional_detr_r50", cityscapes),
        ("deformable_detr.safetensors", "deformable_detr_r50_two_stage", COCO),
        ("dino.safetensors", "dino_r50_4scale", COCO),
        ("relation_detr.safetensors", "relation_detr_r50", COCO),
        ("salience_detr.safetensors", "salience_detr_r50", COCO),
        ("dape.safetensors", "dape_r50", COCO),
    ):
        model = detrkit.create_model(name, num_classes=len(classes), num_queries=10, **TINY_MODEL)
        model.categories = detrkit.Categories.from_json([{"id": key, "name": name} for key, name in classes.items()])
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        detrkit.save(model, folder / path)
    recipe = load_recipe({"model": {"name": "dela_detr_lite0"}, "data": {"root": "my_data"}})
    (folder / "runs" / "mine" / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    options = TINY_MODEL | {"num_queries": 10, "denoising_queries": 10, "one_to_many_queries": 10}
    panoptic = detrkit.create_model("mask_dape_lite0", task="pan", num_classes=2, **options)
    panoptic.categories = detrkit.Categories(
        [detrkit.Category(1, "bolt"), detrkit.Category(2, "table", is_thing=False)]
    )
    (folder / "runs" / "panoptic" / "best").mkdir(parents=True)
    detrkit.save(panoptic, folder / "runs" / "panoptic" / "best" / "model.safetensors")
    scenes = detrkit.create_model("mask_dape_lite0", task="sem", num_classes=4, **options)
    names = ((1, "wall"), (2, "building"), (3, "sky"), (150, "flag"))
    scenes.categories = detrkit.Categories([detrkit.Category(*name, is_thing=False) for name in names])
    (folder / "runs" / "ade" / "best").mkdir(parents=True)
    detrkit.save(scenes, folder / "runs" / "ade" / "best" / "model.safetensors")
    model = detrkit.create_model("detr_r50")
    torch.save({"model": detrkit.to_official(model)}, folder / "detr-r50-e632da11.pth")
    detrkit.save(model, folder / "detr_r50.safetensors")


def make_workplace(folder: Path) -> Path:
    """Everything: recipes, data/, my_data, my_voc, photos, checkpoints, results."""
    (folder / "recipes").symlink_to(ROOT / "recipes")
    make_data(folder / "data")
    lvis_tree(folder / "data" / "lvis")
    panoptic_tree(folder / "data" / "nuclei_inst")
    panoptic_tree(folder / "data" / "coco", official=True)
    masks_tree(folder / "data" / "aerial_sem")
    ade20k_tree(folder / "data" / "ADEChallengeData2016")
    outlines_tree(folder / "data" / "nuts_inst")
    panoptic_tree(folder / "data" / "coco_open_panoptic")
    (folder / "gtFine").symlink_to(folder / "data" / "cityscapes" / "gtFine")
    (folder / "results").mkdir()
    for path in (folder / "gtFine" / "val").rglob("*_gtFine_instanceIds.png"):
        name = path.name.removesuffix("_gtFine_instanceIds.png")
        (folder / "results" / f"{name}_pred.txt").touch()
    mine = folder / "my_data"
    names = tuple(f"train_{number}.jpg" for number in range(10))
    coco_split(Split(names, mine / "train", mine / "annotations/instances_train.json"), MY_CLASSES)
    coco_split(Split(("val_1.jpg", "val_2.jpg"), mine / "val", mine / "annotations/instances_val.json", 11), MY_CLASSES)
    shutil.copytree(mine, folder / "data" / "blood_cells_det")
    make_voc(folder / "my_voc")
    make_voc(folder / "BCCD_Dataset" / "BCCD")
    _picture(folder / "photo.jpg", 100)
    _picture(folder / "photos" / "a.jpg", 101)
    _picture(folder / "photos" / "sub" / "b.png", 102)
    (folder / "photos" / "broken.jpg").write_bytes(b"not an image")
    results = [{"image_id": 11, "category_id": 7, "bbox": [13, 6, 20, 30], "score": 0.9}]
    _write_json(folder / "results.json", results)
    _write_json(folder / "lvis_results.json", [{"image_id": 1, "category_id": 4, "bbox": [2, 2, 16, 18], "score": 0.9}])
    shutil.copy(mine / "annotations/instances_val.json", folder / "ground_truth.json")
    told = {
        "images": [{"id": 1, "file_name": "val_1.jpg", "width": 96, "height": 64}],
        "categories": [{"id": key, "name": name} for key, name in MY_CLASSES.items()],
        "annotations": [{**results[0], "id": 1, "image_id": 1, "area": 600, "iscrowd": 0}],
    }
    _write_json(folder / "scored" / "predictions.json", told)
    make_maps(folder)
    make_checkpoints(folder)
    return folder


def detrkit_cli(words: list[str]) -> tuple[int, str]:
    """Runs the command line in this process; its exit code and what it wrote to stdout."""
    from detrkit.cli.main import main

    output, argv = io.StringIO(), sys.argv
    sys.argv = ["detrkit", *words]
    try:
        with contextlib.redirect_stdout(output):
            main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = argv
    return code, output.getvalue()
