"""One binary PNG per object, in a folder per image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detrkit.data.class_lists import ClassList
from detrkit.data.coco_json import Row
from detrkit.data.label_maps import is_rgb_png
from detrkit.data.listing import files_in
from detrkit.data.map_files import read_values
from detrkit.data.packed_masks import mask_rle
from detrkit.errors import DataError
from detrkit.structures.segment_maps import segment_shapes

__all__ = ["instance_rows"]


def instance_rows(folder: Path, classes: ClassList, size: tuple[int, int]) -> list[Row]:
    """Annotation rows with RLE, one per PNG file; everything but 0 (black) is the object.

    With several classes, that of an object is the name of the sub-folder or the beginning of the file name:
    ``folder/cat/1.png``, ``folder/cat_1.png``. Files without any object are left out.

    Raises:
        DataError: a file cannot be read, has another size than the image (width, height), or is of no class.
    """
    rows = []
    for path in files_in(folder, {".png"}, recursive=True):
        mask = read_values(path, rgb=is_rgb_png(path)) != 0
        height, width = mask.shape
        if (width, height) != size:
            raise DataError(
                f"{path}: the mask is {width}x{height} pixels but the image {size[0]}x{size[1]}; masks must have the "
                "size of their image"
            )
        category = _category(path, folder, classes)
        shapes = segment_shapes(mask.astype(np.uint8))
        if len(shapes.ids):
            rows.append(
                {
                    "category_id": category,
                    "bbox": shapes.boxes[0].tolist(),
                    "area": int(shapes.areas[0]),
                    "segmentation": mask_rle(mask),
                    "where": str(path),
                }
            )
    return rows


def _category(path: Path, folder: Path, classes: ClassList) -> int:
    if len(classes.categories) == 1:
        return classes.categories[0].id
    said = path.relative_to(folder).parts
    for category in classes.categories:
        name = str(category.name)
        if said[0] == name if len(said) > 1 else path.stem == name or path.stem.startswith(f"{name}_"):
            return category.id
    names = ", ".join(str(name) for name in classes.categories.names[:5])
    raise DataError(
        f"{path}: of which class is it? Put the file in a folder named like its class, or begin its name with it "
        f"(classes of {classes.source}: {names})"
    )
