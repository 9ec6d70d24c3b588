"""Photos that a camera stored on their side: is the frame of their annotations that of the file or the upright one?

Annotations whose size is that of the file as stored are taken for drawn without the EXIF rotation, and the photo is
not rotated either. Some tools (Label Studio) draw on the upright picture and still write the size of the file: their
boxes then leave the stated frame and fit into the upright one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from detrkit.data.clean_rows import row_problem
from detrkit.data.coco_json import Row
from detrkit.data.images import image_size
from detrkit.data.records import Table
from detrkit.errors import DataError

__all__ = ["BORDER_TOLERANCE", "turned_images", "upright"]

BORDER_TOLERANCE = 1.0
"""Pixels by which boxes may extend beyond the image, as rounding can cause."""


def turned_images(table: Table, images: Sequence[Row]) -> dict[int, tuple[int, int]]:
    """The upright size (width, height) of photos that are listed with the size of the file as stored but have upright
    boxes, by image id.

    One such photo shows how the tool writes them all, so the others of the table follow where their boxes fit. Image
    files are opened only where boxes leave their frame, and all of them only where a photo was found.
    """
    sized = (image for image in images if image.get("width") and image.get("height"))
    stated: dict[int, tuple[int, int]] = {image["id"]: (image["width"], image["height"]) for image in sized}
    reach = {key: (0.0, 0.0) for key in stated}
    for row in table.annotations:
        key = row["image_id"]
        if key in reach and row_problem(row) is None:
            x, y, width, height = row["bbox"]
            right, bottom = reach[key]
            if x + width > right or y + height > bottom:
                reach[key] = max(right, x + width), max(bottom, y + height)
    shown = [key for key in stated if _fits(reach[key], stated[key][::-1]) and not _fits(reach[key], stated[key])]
    paths = {image["id"]: table.path(image) for image in images}
    if not any(_stored_turned(paths[key], stated[key]) for key in shown):
        return {}
    fitting = (key for key in stated if _fits(reach[key], stated[key][::-1]))
    return {key: stated[key][::-1] for key in fitting if _stored_turned(paths[key], stated[key])}


def upright(images: Iterable[Row], turned: Mapping[int, tuple[int, int]]) -> list[Row]:
    """The images with the size of :func:`turned_images`, where it has one."""
    return [
        {**image, "width": turned[image["id"]][0], "height": turned[image["id"]][1]} if image["id"] in turned else image
        for image in images
    ]


def _fits(reach: tuple[float, float], size: tuple[int, int]) -> bool:
    return reach[0] <= size[0] + BORDER_TOLERANCE and reach[1] <= size[1] + BORDER_TOLERANCE


def _stored_turned(path: object, size: tuple[int, int]) -> bool:
    """Whether an image of this size as stored has the other orientation upright."""
    try:
        with Image.open(str(path)) as image:
            return size[0] != size[1] and image.size == size and image_size(str(path)) == size[::-1]
    except (OSError, ValueError, DataError):
        return False
