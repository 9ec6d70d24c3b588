"""Ground truth of class maps and panoptic maps from Cityscapes' label images, as cityscapesScripts makes it of them.

Classes are those that the benchmark scores, by label id; pixels of other labels count for nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detrkit.data.gtfine_files import (
    CITYSCAPES_CATEGORIES,
    INSTANCE_SUFFIX,
    LABEL_CLASSES,
    PER_LABEL,
    labels_of,
    read_instance_ids,
)
from detrkit.data.label_maps import read_class_png
from detrkit.errors import DataError
from detrkit.metrics.cityscapes_files import true_images
from detrkit.metrics.panoptic_files import ReadIds
from detrkit.side_by_side import in_threads
from detrkit.structures import Categories, Category, SemanticMap
from detrkit.structures.segment_maps import segment_shapes

__all__ = ["CLASSES", "cityscapes_panoptic_truth", "found_classes", "true_classes"]

CLASSES = Categories(
    Category(one.label, one.name, one.name in CITYSCAPES_CATEGORIES, one.color) for one in LABEL_CLASSES
)
"""The classes that are scored; their ids are the labels."""

_THINGS = [one.id for one in CLASSES if one.is_thing]
_LARGEST = 33  # label in a file; the benchmark's code fails on others
_PLACE = np.full(_LARGEST + 1, 255, dtype=np.uint8)
_PLACE[CLASSES.ids] = np.arange(len(CLASSES))


def true_classes(path: Path) -> SemanticMap:
    """The class of each pixel of a label image of instances.

    Raises:
        DataError: the file cannot be read, or holds a value that is no label.
    """
    return _class_map(labels_of(read_instance_ids(path)), path)


def found_classes(path: Path) -> SemanticMap:
    """The class of each pixel of a label image of results.

    Raises:
        DataError: the file cannot be read, or holds a value that is no label.
    """
    return _class_map(read_class_png(path), path)


def _class_map(labels: NDArray[np.integer], path: Path) -> SemanticMap:
    largest = int(labels.max(initial=0))
    if largest > _LARGEST:
        raise DataError(
            f"{path}: {largest} is no label id of Cityscapes (0 to {_LARGEST}; pixels without a class are 0, and a car "
            "is 26, not its train id 13)"
        )
    return SemanticMap(_PLACE[labels], CLASSES, path=path)


def cityscapes_panoptic_truth(folder: Path) -> tuple[dict[str, object], ReadIds]:
    """COCO panoptic content of the label images in a folder, and what gives the segment ids of an image.

    The id of an image is ``<city>_<sequence>_<frame>``, that of a segment its value in the file, and that of a category
    its label. Groups of objects are crowds.

    folder: ``gtFine``, one of its splits, or the folder that holds ``gtFine``; of several splits that of val.

    Raises:
        DataError: there are no such files, or one cannot be read.
    """
    files = {path.name.removesuffix(INSTANCE_SUFFIX): path for path in true_images(folder)}

    def ids(name: str) -> NDArray[np.integer]:
        values = read_instance_ids(files[name])
        return np.where(np.isin(labels_of(values), CLASSES.ids), values, 0)

    def rows(name: str) -> tuple[Mapping[str, object], Mapping[str, object]]:
        values = ids(name)
        shapes = segment_shapes(values)
        labels = labels_of(shapes.ids)
        crowds = (shapes.ids < PER_LABEL) & np.isin(labels, _THINGS)
        columns = (shapes.ids, labels, shapes.areas, crowds.astype(int))
        keys = ("id", "category_id", "area", "iscrowd")
        segments = [
            dict(zip(keys, row, strict=True)) for row in zip(*(column.tolist() for column in columns), strict=True)
        ]
        photo = f"{files[name].parent.name}/{name}_leftImg8bit.png"
        image = {"id": name, "file_name": photo, "height": values.shape[0], "width": values.shape[1]}
        return image, {"image_id": name, "file_name": name, "segments_info": segments}

    images, annotations = zip(*in_threads(rows, files), strict=True)
    categories = [{**row, "isthing": row.get("isthing", 1)} for row in CLASSES.to_json()]
    return {"images": list(images), "annotations": list(annotations), "categories": categories}, ids
