"""Cityscapes' ``gtFine`` label images: read as they are, or converted to COCO JSON.

Pixel values of 1000 and more are single objects (label = value // 1000). Smaller values are labels: of stuff, of groups
of objects that nobody separated, or of regions that do not count, as single caravans and trailers do not either.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from detrkit.data.coco_json import Row
from detrkit.data.listing import files_in
from detrkit.data.map_files import MapFile
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = [
    "CITYSCAPES_CATEGORIES",
    "INSTANCE_SUFFIX",
    "Groups",
    "convert_gtfine",
    "gtfine_splits",
    "gtfine_table",
    "instance_images",
    "read_instance_ids",
]

Groups = Literal["crowd", "object"]

CITYSCAPES_CATEGORIES = ("person", "car", "train", "rider", "truck", "motorcycle", "bicycle", "bus")
"""Names of category ids 1 to 8, in the order of the published checkpoints."""

_THINGS = range(1, 9)
# Classes of maps: things first, in the order above, then stuff by label; colours of the benchmark.
_MAP_CLASSES: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (24, "person", (220, 20, 60)),
    (26, "car", (0, 0, 142)),
    (31, "train", (0, 80, 100)),
    (25, "rider", (255, 0, 0)),
    (27, "truck", (0, 0, 70)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
    (28, "bus", (0, 60, 100)),
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
)
_MAP_CATEGORY = {label: number for number, (label, _, _) in enumerate(_MAP_CLASSES, start=1)}
INSTANCE_SUFFIX = "_gtFine_instanceIds.png"
"""Ending of the label images of instances."""


def instance_images(folder: Path) -> list[Path]:
    """The label images of instances below a folder, sorted."""
    return [path for path in files_in(folder, {".png"}, recursive=True) if path.name.endswith(INSTANCE_SUFFIX)]


def gtfine_splits(root: Path) -> dict[str, list[Path]]:
    """The sorted ``*_instanceIds.png`` files of each split in ``root/gtFine`` or ``root``.

    Raises:
        DataError: there are no such files.
    """
    folder = root / "gtFine" if (root / "gtFine").is_dir() else root
    found = {split: instance_images(folder / split) for split in ("train", "val", "test")}
    found = {split: files for split, files in found.items() if files}
    if not found:
        raise DataError(f"{root}: no Cityscapes labels; looked for {folder}/{{train,val}}/<city>/*{INSTANCE_SUFFIX}")
    return found


def convert_gtfine(
    files: list[Path], *, groups: Groups = "crowd", progress: Callable[[int, int], None] | None = None
) -> Row:
    """COCO JSON from label images: one annotation per instance of the eight classes.

    Boxes are tight around the pixels, and areas count them. Image ids follow the order of the
    files; file names include the folder of the city.

    Args:
        files: label images, as ``gtfine_splits`` lists them.
        groups: ``"crowd"`` marks groups as iscrowd, ``"object"`` turns each group into one object.
        progress: called as progress(done, total) after every file.

    Raises:
        DataError: a file cannot be read or is not a label image.
    """
    images: list[Row] = []
    annotations: list[Row] = []
    with ThreadPoolExecutor() as pool:
        for number, (file, (size, rows)) in enumerate(zip(files, pool.map(_read, files), strict=True), start=1):
            name = f"{file.parent.name}/{file.name.removesuffix(INSTANCE_SUFFIX)}_leftImg8bit.png"
            images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
            for row in rows:
                if groups == "object":
                    row["iscrowd"] = 0
                annotations.append({"id": len(annotations) + 1, "image_id": number, **row})
            if progress is not None:
                progress(number, len(files))
    categories = [{"id": number, "name": name} for number, name in enumerate(CITYSCAPES_CATEGORIES, start=1)]
    info = {"description": "Cityscapes gtFine, eight instance classes", "groups": groups}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def gtfine_table(files: list[Path], image_root: Path) -> Table:
    """The objects and regions of label images, with the masks in these files; classes are 8 things and 11 of stuff.

    Args:
        files: label images of one split.
        image_root: its folder in ``leftImg8bit``.

    Raises:
        DataError: a file cannot be read or is not a label image.
    """
    images: list[Row] = []
    annotations: list[Row] = []
    with ThreadPoolExecutor() as pool:
        for number, (file, (size, rows, values)) in enumerate(zip(files, pool.map(_regions, files), strict=True), 1):
            name = f"{file.parent.name}/{file.name.removesuffix(INSTANCE_SUFFIX)}_leftImg8bit.png"
            kept = tuple(row["value"] for row in rows)
            void = tuple(value for value in values if value not in kept)
            source = MapFile(path=file, values=kept, void=void, rgb=False, listed_in=file.name)
            images.append({"id": number, "file_name": name, "width": size[0], "height": size[1], "map": source})
            annotations += [
                {"id": len(annotations) + place, "image_id": number, **row} for place, row in enumerate(rows, start=1)
            ]
    categories: list[Row] = [
        {"id": number, "name": name, "isthing": int(number in _THINGS), "color": list(color)}
        for number, (_, name, color) in enumerate(_MAP_CLASSES, start=1)
    ]
    return Table(
        origin=files[0].parents[1],
        image_root=image_root,
        images=images,
        annotations=annotations,
        categories=categories,
        instance_protocol="cityscapes",
    )


def read_instance_ids(file: Path) -> NDArray[np.int32]:
    """The values (H, W) of a label image of instances.

    Raises:
        DataError: the file cannot be read or is not a label image.
    """
    try:
        with Image.open(file) as image:
            values = np.asarray(image).astype(np.int32)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file}: the label image cannot be read ({error})") from error
    if values.ndim != 2 or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"{file}: is not a label image of one 16-bit channel")
    return values


def _read(file: Path) -> tuple[tuple[int, int], list[Row]]:
    """Size and objects of a label image, as COCO has them."""
    size, rows, _ = _regions(file)
    things = (row for row in rows if row["category_id"] in _THINGS)
    return size, [{key: row[key] for key in ("category_id", "bbox", "area", "iscrowd")} for row in things]


def _regions(file: Path) -> tuple[tuple[int, int], list[Row], list[int]]:
    """Size, regions of the classes, and all values of a label image."""
    values = read_instance_ids(file)
    counts = np.bincount(values.ravel())
    slices = ndimage.find_objects(values)  # index v - 1 holds the bounding box of value v
    rows: list[Row] = []
    present = np.flatnonzero(counts).tolist()
    for value in present:
        category_id = _MAP_CATEGORY.get(value // 1000 if value >= 1000 else value)
        if category_id is None:
            continue
        ys, xs = slices[value - 1]
        rows.append(
            {
                "category_id": category_id,
                "bbox": [xs.start, ys.start, xs.stop - xs.start, ys.stop - ys.start],
                "area": int(counts[value]),
                "iscrowd": int(value < 1000 and category_id in _THINGS),
                "value": value,
                "where": f"{file}: value {value}",
            }
        )
    return (values.shape[1], values.shape[0]), rows, present
