"""One binary PNG per object, in a folder per image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detrkit.data.class_lists import ClassList
from detrkit.data.coco_json import Row
from detrkit.data.images import stored_size
from detrkit.data.label_maps import is_rgb_png, not_png
from detrkit.data.listing import IMAGE_SUFFIXES, files_in
from detrkit.data.map_files import read_values, values_in
from detrkit.data.packed_masks import mask_rle
from detrkit.errors import DataError
from detrkit.structures.segment_maps import segment_shapes

__all__ = ["DoubtfulFiles", "instance_rows"]


@dataclass(frozen=True)
class DoubtfulFiles:
    """Files of objects that can be read, but may mean something else."""

    several: list[str] = field(default_factory=list)
    """Files with several values beside 0."""

    inverted: list[str] = field(default_factory=list)
    """Files whose object has all four corners of the image."""


def instance_rows(
    folder: Path, image: Path, size: tuple[int, int], classes: ClassList
) -> tuple[Row, list[Row], DoubtfulFiles]:
    """What the row of an image has of its masks, annotation rows with RLE, one per PNG file, and doubtful files.

    Everything but 0 (black) is the object. With several classes, that of an object is the name of the sub-folder or the
    beginning of the file name: ``folder/cat/1.png``, ``folder/cat_1.png``. Files without any object are left out;
    doubtful are those with more than one value beside 0, and those whose object has all four corners of the image, as
    the background of a black object on white has.

    Args:
        folder: of the PNG files.
        image: the file of the image.
        size: (width, height) of the upright image. All masks may also have that of the file before the EXIF rotation.
        classes: the classes.

    Raises:
        DataError: a file cannot be read, is no PNG, has another size than the image, or is of no class.
    """
    rows = []
    doubtful = DoubtfulFiles()
    sizes = {size, stored_size(image)}
    for path in files_in(folder, IMAGE_SUFFIXES, recursive=True):
        if path.suffix.lower() != ".png":
            raise not_png(path)
        values = read_values(path, rgb=is_rgb_png(path))
        mask = values != 0
        height, width = mask.shape
        if (width, height) not in sizes:
            raise DataError(
                f"{path}: the mask is {width}x{height} pixels but the image {size[0]}x{size[1]}; masks must have the "
                "size of their image"
            )
        size, sizes = (width, height), {(width, height)}
        category = _category(path, folder, classes)
        shapes = segment_shapes(mask.astype(np.uint8))
        if len(values_in(values) - {0}) > 1:
            doubtful.several.append(str(path))
        if mask[[0, 0, -1, -1], [0, -1, 0, -1]].all():
            doubtful.inverted.append(str(path))
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
    return {"width": size[0], "height": size[1]}, rows, doubtful


def _category(path: Path, folder: Path, classes: ClassList) -> int:
    """The class of an object: of names that fit, the longest."""
    if len(classes.categories) == 1:
        return classes.categories[0].id
    said = path.relative_to(folder).parts
    for category in sorted(classes.categories, key=lambda category: -len(str(category.name))):
        name = str(category.name)
        if said[0] == name if len(said) > 1 else path.stem == name or path.stem.startswith(f"{name}_"):
            return category.id
    names = ", ".join(str(name) for name in classes.categories.names[:5])
    raise DataError(
        f"{path}: of which class is it? Put the file in a folder named like its class, or begin its name with it "
        f"(classes of {classes.source}: {names})"
    )
