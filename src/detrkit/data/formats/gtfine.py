"""Cityscapes ``gtFine`` label images into COCO JSON."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from detrkit.data.coco_json import Row
from detrkit.errors import DataError

__all__ = ["CITYSCAPES_CATEGORIES", "Groups", "convert_gtfine", "gtfine_splits"]

Groups = Literal["crowd", "object"]

CITYSCAPES_CATEGORIES = ("person", "car", "train", "rider", "truck", "motorcycle", "bicycle", "bus")
"""Names of category ids 1 to 8: the order of the published checkpoints."""

_CATEGORY_OF_LABEL = {24: 1, 26: 2, 31: 3, 25: 4, 27: 5, 32: 6, 33: 7, 28: 8}
_SUFFIX = "_gtFine_instanceIds.png"


def gtfine_splits(root: Path) -> dict[str, list[Path]]:
    """The ``*_instanceIds.png`` files of each split below ``root/gtFine`` (or ``root`` itself), sorted.

    Raises:
        DataError: there are none.
    """
    folder = root / "gtFine" if (root / "gtFine").is_dir() else root
    found = {split: sorted((folder / split).glob(f"*/*{_SUFFIX}")) for split in ("train", "val", "test")}
    found = {split: files for split, files in found.items() if files}
    if not found:
        raise DataError(f"{root}: no Cityscapes labels; looked for {folder}/{{train,val}}/<city>/*{_SUFFIX}")
    return found


def convert_gtfine(
    files: list[Path], *, groups: Groups = "crowd", progress: Callable[[int, int], None] | None = None
) -> Row:
    """COCO JSON of label images: one annotation for every instance of the eight classes.

    Pixel values from 1000 are instances (label = value // 1000). Values below are groups whose members could not be
    told apart: ``"crowd"`` marks them iscrowd, ``"object"`` takes them as one object. bbox: tight around the pixels;
    area: their number. Image ids follow the order of the files; file names carry the city's folder.
    """
    images: list[Row] = []
    annotations: list[Row] = []
    with ThreadPoolExecutor() as pool:
        for number, (file, (size, rows)) in enumerate(zip(files, pool.map(_read, files), strict=True), start=1):
            name = f"{file.parent.name}/{file.name.removesuffix(_SUFFIX)}_leftImg8bit.png"
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


def _read(file: Path) -> tuple[tuple[int, int], list[Row]]:
    try:
        with Image.open(file) as image:
            values = np.asarray(image).astype(np.int32)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file}: the label image cannot be read ({error})") from error
    if values.ndim != 2 or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"{file}: is not a label image of one 16-bit channel")
    counts = np.bincount(values.ravel())
    slices = ndimage.find_objects(values)  # position v - 1 is the bounding box of value v
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
