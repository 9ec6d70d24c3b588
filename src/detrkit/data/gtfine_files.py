"""Cityscapes' ``gtFine`` label images of instances: which files they are, their values, and what these stand for.

Imports no format, so that scoring starts at once.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.data.listing import files_in
from detrkit.errors import DataError

__all__ = [
    "CITYSCAPES_CATEGORIES",
    "INSTANCE_SUFFIX",
    "LABEL_CLASSES",
    "PER_LABEL",
    "LabelClass",
    "frame_name",
    "instance_images",
    "labels_of",
    "read_instance_ids",
]

INSTANCE_SUFFIX = "_gtFine_instanceIds.png"
"""Ending of the label images of instances."""

PER_LABEL = 1000
"""Values from here on are single objects, label x 1000 + number; smaller ones are labels."""


class LabelClass(NamedTuple):
    """A class that the benchmark scores: its label in the files, its name, and its colour (R, G, B)."""

    label: int
    name: str
    color: tuple[int, int, int]


LABEL_CLASSES = (
    LabelClass(7, "road", (128, 64, 128)),
    LabelClass(8, "sidewalk", (244, 35, 232)),
    LabelClass(11, "building", (70, 70, 70)),
    LabelClass(12, "wall", (102, 102, 156)),
    LabelClass(13, "fence", (190, 153, 153)),
    LabelClass(17, "pole", (153, 153, 153)),
    LabelClass(19, "traffic light", (250, 170, 30)),
    LabelClass(20, "traffic sign", (220, 220, 0)),
    LabelClass(21, "vegetation", (107, 142, 35)),
    LabelClass(22, "terrain", (152, 251, 152)),
    LabelClass(23, "sky", (70, 130, 180)),
    LabelClass(24, "person", (220, 20, 60)),
    LabelClass(25, "rider", (255, 0, 0)),
    LabelClass(26, "car", (0, 0, 142)),
    LabelClass(27, "truck", (0, 0, 70)),
    LabelClass(28, "bus", (0, 60, 100)),
    LabelClass(31, "train", (0, 80, 100)),
    LabelClass(32, "motorcycle", (0, 0, 230)),
    LabelClass(33, "bicycle", (119, 11, 32)),
)
"""The classes in the order of their labels, which is that of the benchmark's tables."""

CITYSCAPES_CATEGORIES = ("person", "car", "train", "rider", "truck", "motorcycle", "bicycle", "bus")
"""Names of category ids 1 to 8, the classes with single objects, in the order of the published checkpoints."""


_FRAME = re.compile(r"([^_/]+_\d+_\d+)(_[^/]*)?")


def frame_name(file_name: str) -> str | None:
    """``<city>_<sequence>_<frame>`` of a file, by which the benchmark matches files; None for other names."""
    found = _FRAME.fullmatch(PurePosixPath(file_name).stem)
    return found and found[1]


def instance_images(folder: Path) -> list[Path]:
    """The label images of instances below a folder, sorted."""
    return [path for path in files_in(folder, {".png"}, recursive=True) if path.name.endswith(INSTANCE_SUFFIX)]


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


def labels_of(instance_ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """The labels that values of a label image of instances stand for."""
    return np.where(instance_ids >= PER_LABEL, instance_ids // PER_LABEL, instance_ids)
