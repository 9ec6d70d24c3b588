"""Converting Cityscapes ``gtFine`` label images to COCO JSON."""

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
from detrkit.errors import DataError

__all__ = [
    "CITYSCAPES_CATEGORIES",
    "INSTANCE_SUFFIX",
    "Groups",
    "convert_gtfine",
    "gtfine_splits",
    "instance_images",
    "read_instance_ids",
]

Groups = Literal["crowd", "object"]

CITYSCAPES_CATEGORIES = ("person", "car", "train", "rider", "truck", "motorcycle", "bicycle", "bus")
"""Names of category ids 1 to 8, in the order of the published checkpoints."""

_CATEGORY_OF_LABEL = {24: 1, 26: 2, 31: 3, 25: 4, 27: 5, 32: 6, 33: 7, 28: 8}
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

    Pixel values of 1000 and more are instances (label = value // 1000). Smaller values are groups of objects without
    individual labels. Boxes are tight around the pixels, and areas count them. Image ids follow the order of the
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
    values = read_instance_ids(file)
    counts = np.bincount(values.ravel())
    slices = ndimage.find_objects(values)  # index v - 1 holds the bounding box of value v
    rows: list[Row] = []
    for value in np.flatnonzero(counts).tolist():
        category_id = _CATEGORY_OF_LABEL.get(value // 1000 if value >= 1000 else value)
        if category_id is None:
            continue
        ys, xs = slices[value - 1]
        rows.append(
            {
                "category_id": category_id,
                "bbox": [xs.start, ys.start, xs.stop - xs.start, ys.stop - ys.start],
                "area": int(counts[value]),
                "iscrowd": int(value < 1000),
            }
        )
    return (values.shape[1], values.shape[0]), rows
