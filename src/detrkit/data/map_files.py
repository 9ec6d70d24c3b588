"""Masks of an image in one PNG file, whose pixels are numbers of segments or of classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detrkit.data.label_maps import read_class_png, read_panoptic_png
from detrkit.errors import DataError
from detrkit.structures.segment_maps import id_mismatch

__all__ = ["Map", "MapFile", "read_values", "stated_size", "values_in"]

Map = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapFile:
    """The PNG file of an image, which is read when a sample is made.

    Attributes:
        path: of the PNG.
        values: those of the image's segments.
        void: values of pixels that belong to no segment.
        rgb: whether the value of a pixel is R + 256 G + 65536 B of its colour (COCO panoptic) or the number in its only
            channel.
        listed_in: where the segments are listed, for messages.
    """

    path: Path
    values: tuple[int, ...]
    void: tuple[int, ...]
    rgb: bool
    listed_in: str

    def read(self, size: tuple[int, int] | None) -> Map:
        """The values (H, W) of an image of this size (width, height); None: of unknown size.

        Raises:
            DataError: the file cannot be read, has another size, or does not have the segments that are listed.
        """
        values = read_values(self.path, rgb=self.rgb)
        height, width = values.shape
        if size is not None and (width, height) != size:
            raise DataError(
                f"{self.path}: the mask is {width}x{height} pixels but the image {size[0]}x{size[1]}; masks must have "
                "the size of their image"
            )
        problem = id_mismatch(values_in(values) - set(self.void), set(self.values) - set(self.void))
        if problem:
            raise DataError(f"{self.path}: does not fit {self.listed_in}: {problem}")
        return values


def read_values(path: Path, *, rgb: bool) -> Map:
    """The values (H, W) of a PNG file; see :class:`MapFile`.

    Raises:
        DataError: the file cannot be read or is a PNG of another kind.
    """
    return read_panoptic_png(path) if rgb else read_class_png(path).astype(np.int32)


def stated_size(image: Mapping[str, int]) -> tuple[int, int] | None:
    """(width, height) of the image row of a table, or None where it has none."""
    width, height = image.get("width"), image.get("height")
    return (width, height) if width and height else None


def values_in(values: Map) -> set[int]:
    """The different values of a map."""
    change = np.ones(values.shape, dtype=bool)  # of runs of equal pixels, since there are far fewer than pixels
    np.not_equal(values[:, 1:], values[:, :-1], out=change[:, 1:])
    return set(np.unique(values[change]).tolist())
