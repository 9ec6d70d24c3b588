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

from detrkit.data.coco_json import Row
from detrkit.data.gtfine_files import (
    CITYSCAPES_CATEGORIES,
    INSTANCE_SUFFIX,
    LABEL_CLASSES,
    PER_LABEL,
    instance_images,
    read_instance_ids,
)
from detrkit.data.map_files import MapFile
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["Groups", "convert_gtfine", "gtfine_splits", "gtfine_table"]

Groups = Literal["crowd", "object"]

_THINGS = range(1, len(CITYSCAPES_CATEGORIES) + 1)
# Classes of maps: things first, in the order of their category ids, then stuff by label.
_CLASS_OF = {one.name: one for one in LABEL_CLASSES}
_MAP_CLASSES = [_CLASS_OF[name] for name in dict.fromkeys((*CITYSCAPES_CATEGORIES, *_CLASS_OF))]
_MAP_CATEGORY = {one.label: number for number, one in enumerate(_MAP_CLASSES, start=1)}


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
        {"id": number, "name": one.name, "isthing": int(number in _THINGS), "color": list(one.color)}
        for number, one in enumerate(_MAP_CLASSES, start=1)
    ]
    return Table(
        origin=files[0].parents[1],
        image_root=image_root,
        images=images,
        annotations=annotations,
        categories=categories,
        instance_protocol="cityscapes",
    )


def _read(file: Path) -> tuple[tuple[int, int], list[Row]]:
    """Size and objects of a label image, as COCO has them."""
    size, rows, _ = _regions(file)
    things = (row for row in rows if row["category_id"] in _THINGS)
    return size, [{key: row[key] for key in ("category_id", "bbox", "area", "iscrowd")} for row in things]


def _regions(file: Path) -> tuple[tuple[int, int], list[Row], list[int]]:
    """Size, regions of the classes, and all values of a label image."""
    from scipy import ndimage  # which other formats do not need

    values = read_instance_ids(file)
    counts = np.bincount(values.ravel())
    slices = ndimage.find_objects(values)  # index v - 1 holds the bounding box of value v
    rows: list[Row] = []
    present = np.flatnonzero(counts).tolist()
    for value in present:
        category_id = _MAP_CATEGORY.get(value // PER_LABEL if value >= PER_LABEL else value)
        if category_id is None:
            continue
        ys, xs = slices[value - 1]
        rows.append(
            {
                "category_id": category_id,
                "bbox": [xs.start, ys.start, xs.stop - xs.start, ys.stop - ys.start],
                "area": int(counts[value]),
                "iscrowd": int(value < PER_LABEL and category_id in _THINGS),
                "value": value,
                "where": f"{file}: value {value}",
            }
        )
    return (values.shape[1], values.shape[0]), rows, present
