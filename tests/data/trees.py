"""A tiny data set in every format: three training and two val images, two classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrkit.data.segments import Segments

NAMES = ("bolt", "nut")
SIZE = (40, 30)  # width, height

# split -> file name -> boxes (label, x, y, width, height), in whole pixels, which all formats represent exactly
BOXES: dict[str, dict[str, list[tuple[int, int, int, int, int]]]] = {
    "train": {"a.png": [(0, 4, 3, 10, 12), (1, 20, 6, 20, 24)], "b.png": [], "ü c.png": [(1, 0, 0, 8, 6)]},
    "val": {"d.png": [(0, 2, 2, 16, 18)], "e.png": [(1, 30, 20, 10, 10), (0, 12, 9, 4, 3)]},
}


def segments(boxes: Any, labels: Any = None, areas: Any = None, crowd: Any = None) -> Segments:
    """Segments from boxes xyxy; by default with labels 0, 1, 2, …, area 1 and no crowd."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    count = len(corners)
    return Segments(
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        labels=np.arange(count) if labels is None else np.asarray(labels, np.int64),
        areas=np.ones(count) if areas is None else np.asarray(areas, np.float64),
        crowd=np.zeros(count, bool) if crowd is None else np.asarray(crowd, bool),
        outside=np.zeros(count, bool),
        things=np.ones(count, bool),
    )


def write_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    """Write noise that depends on the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_images(split: str, folder: Path) -> None:
    """Write the images of a split."""
    for number, name in enumerate(BOXES[split]):
        write_image(folder / name, seed=number + 100 * (split == "val"))


def coco(split: str, *, first_id: int = 1, prefix: str = "") -> dict[str, Any]:
    """COCO JSON of a split; label k has category id ``first_id + k``."""
    images, annotations = [], []
    for number, (name, boxes) in enumerate(BOXES[split].items(), start=1):
        images.append({"id": number, "file_name": prefix + name, "width": SIZE[0], "height": SIZE[1]})
        for label, *bbox in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": first_id + label,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": first_id + label, "name": name} for label, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def dump(path: Path, data: Any) -> Path:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


Change = Callable[[dict[str, Any]], object]


def edit(path: Path, change: Change) -> None:
    """Change a JSON file."""
    data = json.loads(path.read_text())
    change(data)
    dump(path, data)


def coco_tree(root: Path, *, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """annotations/instances_*.json with images/*."""
    for split in splits:
        write_images(split, root / "images" / split)
        dump(root / "annotations" / f"instances_{split}.json", coco(split, first_id=1))
    return root


def outlines_tree(root: Path) -> Path:
    """The same with rectangles as polygons."""

    def outlined(data: dict[str, Any]) -> None:
        for row in data["annotations"]:
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]

    coco_tree(root)
    for split in BOXES:
        edit(root / "annotations" / f"instances_{split}.json", outlined)
    return root


def official_coco_tree(root: Path) -> Path:
    """annotations/instances_*2017.json among other files, with train2017 and val2017."""
    for split in BOXES:
        write_images(split, root / f"{split}2017")
        dump(root / "annotations" / f"instances_{split}2017.json", coco(split, first_id=7))
        dump(root / "annotations" / f"captions_{split}2017.json", {"annotations": []})
        dump(root / "annotations" / f"panoptic_{split}2017.json", {"annotations": []})
    return root


def named_folders_tree(root: Path) -> Path:
    """annotations/*.json with image file names that include the folder."""
    for split in BOXES:
        write_images(split, root / "pictures" / split)
        dump(root / "annotations" / f"my_{split}_set.json", coco(split, prefix=f"pictures/{split}/"))
    return root


def roboflow_tree(root: Path) -> Path:
    """train/_annotations.coco.json with the placeholder class 0, and valid/."""
    for split, folder in (("train", root / "train"), ("val", root / "valid")):
        write_images(split, folder)
        data = coco(split, first_id=1)
        data["categories"] = [
            {"id": 0, "name": "hardware", "supercategory": "none"},
            *({**row, "supercategory": "hardware"} for row in data["categories"]),
        ]
        dump(folder / "_annotations.coco.json", data)
    return root


def yolo_tree(root: Path) -> Path:
    """data.yaml, images/*, labels/*; the image without objects has an empty label file."""
    for split, images in BOXES.items():
        write_images(split, root / "images" / split)
        for name, boxes in images.items():
            rows = [
                f"{label} {(x + w / 2) / SIZE[0]:.8f} {(y + h / 2) / SIZE[1]:.8f} {w / SIZE[0]:.8f} {h / SIZE[1]:.8f}"
                for label, x, y, w, h in boxes
            ]
            path = root / "labels" / split / f"{Path(name).stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    names = json.dumps(list(NAMES))
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnc: 2\nnames: {names}\n", encoding="utf-8")
    return root


def voc_tree(root: Path) -> Path:
    """Annotations, JPEGImages, ImageSets; pixels counted from 1."""
    for split, images in BOXES.items():
        write_images(split, root / "JPEGImages")
        for name, boxes in images.items():
            objects = "".join(
                f"<object><name>{NAMES[label]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
                f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
                for label, x, y, w, h in boxes
            )
            size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
            path = root / "Annotations" / f"{Path(name).stem}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"<annotation><filename>{name}</filename>{size}{objects}</annotation>", encoding="utf-8")
        lists = root / "ImageSets" / "Main" / f"{split}.txt"
        lists.parent.mkdir(parents=True, exist_ok=True)
        lists.write_text("".join(f"{Path(name).stem}\n" for name in images), encoding="utf-8")
    return root


def cityscapes_tree(root: Path) -> Path:
    """leftImg8bit/*/city, and ../CocoFormatAnnos."""
    for split in BOXES:
        write_images(split, root / "leftImg8bit" / split / "ulm")
        name = f"cityscapes_{split}_cocostyle.json"
        dump(root.parent / "CocoFormatAnnos" / name, coco(split, prefix="ulm/"))
    return root


GTFINE_FRAMES = {
    "train": ("ulm_000002_000019", "aachen_000000_000019"),
    "val": ("munster_000001_000019", "frankfurt_000000_010351"),
    "test": ("berlin_000000_000019", "bonn_000003_000019"),
}


def gtfine_values(number: int = 0, size: tuple[int, int] = (96, 64)) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Values of a label image of instances (width, height): every kind that Cityscapes has.

    Stuff, objects whose numbers begin anywhere and leave gaps, one of less than 100 pixels, a group of persons, a group
    of caravans, single caravans and trailers, and regions that do not count.
    """
    width, height = size
    values = np.full((height, width), 7, np.int32)  # road
    values[:16] = 23  # sky
    values[16:20] = 11  # building
    values[:, :4], values[-4:] = 3, 1  # out of roi, ego vehicle
    for value, left, top, side in [
        (26_005, 8, 24, 12),
        (26_002, 24, 24, 12),
        (26_000, 40, 24, 8),  # too small to count
        (24_001 + number, 52, 24, 12),
        (24, 68, 24, 12),  # persons that nobody separated
        (29_000, 8, 40, 12),  # a caravan
        (30_000, 24, 40, 12),  # a trailer
        (29, 40, 40, 12),
        (33_000 + 3 * number, 56, 40, 12),
        (4, 72, 40, 12),  # static
    ]:
        values[top : top + side, left : left + side] = value
    return values


def gtfine_tree(root: Path, size: tuple[int, int] = (96, 64)) -> Path:
    """leftImg8bit and gtFine as they are downloaded; the labels of the test split are dummies."""
    for split, frames in GTFINE_FRAMES.items():
        for number, frame in enumerate(frames):
            city = frame.split("_")[0]
            write_image(root / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png", size, seed=number)
            values = np.full((size[1], size[0]), 3, np.int32) if split == "test" else gtfine_values(number, size)
            folder = root / "gtFine" / split / city
            folder.mkdir(parents=True, exist_ok=True)
            labels = np.where(values >= 1000, values // 1000, values)
            Image.fromarray(values.astype(np.uint16)).save(folder / f"{frame}_gtFine_instanceIds.png")
            Image.fromarray(labels.astype(np.uint8)).save(folder / f"{frame}_gtFine_labelIds.png")
    return root


def _odd(data: dict[str, Any]) -> None:
    """Ids that leave gaps and come in no order, and polygons."""
    number_of = {row["id"]: 900 - 7 * row["id"] for row in data["images"]}
    for row in data["images"]:
        row["id"] = number_of[row["id"]]
    for row in data["annotations"]:
        row["image_id"], row["id"] = number_of[row["image_id"]], 5000 - 11 * row["id"]
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    data["images"].reverse()
    data["annotations"] = data["annotations"][1::2] + data["annotations"][::2]


def coco_masks_tree(root: Path) -> Path:
    """As COCO's files are: ids with gaps and in no order, and on every image a crowd as uncompressed run lengths."""
    for split in BOXES:
        write_images(split, root / f"{split}2017")
        data = coco(split, first_id=7)
        _odd(data)
        for number, image in enumerate(data["images"]):
            width, height = image["width"], image["height"]
            counts = [(width - 4) * height, 4 * height]  # the last four columns; runs go down the columns
            row = {"id": 1 + number, "image_id": image["id"], "category_id": 7, "bbox": [width - 4, 0, 4, height]}
            mask = {"size": [height, width], "counts": counts}
            data["annotations"].insert(0, {**row, "area": 4 * height, "iscrowd": 1, "segmentation": mask})
        dump(root / "annotations" / f"instances_{split}2017.json", data)
    return root


LVIS_FOLDERS = {
    "a.png": "train2017",
    "b.png": "train2017",
    "ü c.png": "val2017",
    "d.png": "val2017",
    "e.png": "train2017",
}


def lvis(split: str) -> dict[str, Any]:
    """LVIS JSON of a split: URLs instead of file names, class lists of images, frequencies of classes."""
    data = coco(split, first_id=4)
    for image in data["images"]:
        name = image.pop("file_name")
        present = {row["category_id"] for row in data["annotations"] if row["image_id"] == image["id"]}
        image["coco_url"] = f"http://images.cocodataset.org/{LVIS_FOLDERS[name]}/{name}"
        image["neg_category_ids"] = sorted({4, 5} - present)
        image["not_exhaustive_category_ids"] = [4] if name == "e.png" else []
    for row in data["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        del row["iscrowd"]
    for row, frequency in zip(data["categories"], "rf", strict=True):
        row["frequency"] = frequency
    return data


def lvis_tree(root: Path) -> Path:
    """annotations/lvis_v1_*.json; train2017 and val2017 have images of both splits."""
    for split, images in BOXES.items():
        for number, name in enumerate(images):
            write_image(root / LVIS_FOLDERS[name] / name, seed=number + 100 * (split == "val"))
        dump(root / "annotations" / f"lvis_v1_{split}.json", lvis(split))
    return root


STUFF = ("ground", "sky")


def panoptic(split: str) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, np.dtype[np.int32]]]]:
    """COCO panoptic JSON of a split, and the segment ids of its PNG files.

    The objects of ``BOXES`` (label k is category 1 + k) are on two regions of stuff: ground (3) and, on the upper 10
    rows, sky (4). The first column is void.
    """
    data, maps = coco(split), {}
    rows = []
    for image in data["images"]:
        ids = np.zeros((SIZE[1], SIZE[0]), np.int32)
        ids[:, 1:], ids[:10, 1:] = 70_003, 4
        categories = {70_003: 3, 4: 4}
        for number, row in enumerate(row for row in data["annotations"] if row["image_id"] == image["id"]):
            x, y, w, h = row["bbox"]
            ids[y : y + h, max(x, 1) : x + w] = 300 + number
            categories[300 + number] = row["category_id"]
        info = []
        for segment, category in categories.items():
            ys, xs = np.nonzero(ids == segment)
            if len(ys):
                box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
                row = {"id": segment, "category_id": category, "bbox": box, "area": len(ys), "iscrowd": 0}
                info.append(row)
        name = f"{Path(image['file_name']).stem}.png"
        rows.append({"image_id": image["id"], "file_name": name, "segments_info": info})
        maps[name] = ids
    categories = [{**row, "isthing": 1} for row in data["categories"]]
    categories += [{"id": 3 + k, "name": name, "isthing": 0, "color": [k, 9, 9]} for k, name in enumerate(STUFF)]
    return {"images": data["images"], "annotations": rows, "categories": categories}, maps


def panoptic_tree(root: Path, *, official: bool = False) -> Path:
    """annotations/panoptic_*.json, a folder of PNG files beside each, and images/*; ``official``: named as COCO's."""
    for split in BOXES:
        folder = f"{split}2017" if official else f"images/{split}"
        write_images(split, root / folder)
        data, maps = panoptic(split)
        path = dump(root / "annotations" / f"panoptic_{split}{'2017' if official else ''}.json", data)
        for name, ids in maps.items():
            write_map(path.with_suffix("") / name, ids, rgb=True)
    return root


def write_map(path: Path, values: Any, *, rgb: bool = False) -> None:
    """Write a PNG whose pixels are numbers: in one channel, or R + 256 G + 65536 B."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values, np.int32)
    pixels = np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1) if rgb else values
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def class_map(boxes: list[tuple[int, int, int, int, int]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Classes of an image: 0 bolt, 1 nut, 2 ground, and 255 in the first column."""
    values = np.full((SIZE[1], SIZE[0]), 2, np.int32)
    for label, x, y, w, h in boxes:
        values[y : y + h, x : x + w] = label
    values[:, 0] = 255
    return values


def masks_tree(root: Path) -> Path:
    """images/*, masks/* with class maps, classes.json."""
    for split, images in BOXES.items():
        write_images(split, root / "images" / split)
        for name, boxes in images.items():
            write_map(root / "masks" / split / f"{Path(name).stem}.png", class_map(boxes))
    dump(root / "classes.json", [*NAMES, "ground"])
    return root


def instance_files_tree(root: Path) -> Path:
    """images/*, masks/*/<image>/ with one PNG per object, classes.json."""
    for split, images in BOXES.items():
        write_images(split, root / "images" / split)
        for name, boxes in images.items():
            folder = root / "masks" / split / Path(name).stem
            folder.mkdir(parents=True)
            for number, (label, x, y, w, h) in enumerate(boxes):
                mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
                mask[y : y + h, x : x + w] = 255
                Image.fromarray(mask).save(folder / f"{NAMES[label]}_{number}.png")
    dump(root / "classes.json", {"classes": list(NAMES)})
    return root


TREES: dict[str, Callable[[Path], Path]] = {
    "coco": coco_tree,
    "coco, official": official_coco_tree,
    "coco, folders in names": named_folders_tree,
    "lvis": lvis_tree,
    "roboflow": roboflow_tree,
    "yolo": yolo_tree,
    "voc": voc_tree,
    "cityscapes": cityscapes_tree,
}
