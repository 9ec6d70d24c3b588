"""Reading PNG files whose pixels are numbers, not colours: segment ids of COCO panoptic files, classes of label maps.

The header says what kind of PNG it is. Pillow hides it: it reads 16-bit colours as 8-bit, and stretches gray values of
2 and 4 bits to 255.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.errors import DataError
from detrkit.files import check_regular
from detrkit.structures.segment_maps import LabelArray, rgb_to_ids

__all__ = ["is_rgb_png", "not_png", "read_class_png", "read_panoptic_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE, _RGBA = 0, 2, 3, 6
_KINDS = {_GRAY: "gray", _RGB: "RGB", _PALETTE: "palette", 4: "gray with alpha", _RGBA: "RGBA"}
_STRETCHED = {2: 85, 4: 17}
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_panoptic_png(path: Path) -> NDArray[np.int32]:
    """Segment ids (H, W) of a COCO panoptic PNG: R + 256 G + 65536 B.

    Raises:
        DataError: missing, damaged, no PNG of 8-bit colours, or one whose transparency is all that differs.
    """
    depth, kind = _header(path)
    if kind not in (_RGB, _RGBA) or depth != 8:
        raise DataError(
            f"{path}: is a {_named(depth, kind)} PNG, but COCO panoptic files are 8-bit RGB; write segment ids as "
            "R + 256 G + 65536 B"
        )
    pixels = _pixels(path)
    colors, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.size and alpha.min() < alpha.max() and (colors == colors[0, 0]).all():
        raise DataError(
            f"{path}: has one colour alone and a shape in its transparency, which masks do not use; write the shape in "
            "colours or in gray"
        )
    return rgb_to_ids(colors)


def read_class_png(path: Path) -> LabelArray:
    """Values (H, W) of a class map: a gray PNG of up to 16 bits, or the indices (not the colours) of a palette PNG.

    Raises:
        DataError: missing, damaged, or a PNG of another kind.
    """
    depth, kind = _header(path)
    if kind not in (_GRAY, _PALETTE):
        raise DataError(
            f"{path}: is a {_named(depth, kind)} PNG, but class maps have one channel whose values are classes "
            "(8- or 16-bit gray, or palette); turn the colours into class numbers"
        )
    pixels = _pixels(path)
    if depth == 16:
        return pixels.astype(np.uint16, copy=False)
    values = pixels.astype(np.uint8, copy=False)
    return values // np.uint8(_STRETCHED[depth]) if kind == _GRAY and depth in _STRETCHED else values


def not_png(path: Path) -> DataError:
    """What to say of a mask in another format."""
    return DataError(
        f"{path}: masks must be PNG files; JPEG and other formats change the values of pixels, so write the masks anew "
        "from their source"
    )


def is_rgb_png(path: Path) -> bool:
    """Whether a PNG file has colours, and not one channel or a palette.

    Raises:
        DataError: missing, or no PNG.
    """
    return _header(path)[1] in (_RGB, _RGBA)


def _header(path: Path) -> tuple[int, int]:
    """Bits per channel and colour type."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            start = file.read(26)
    except FileNotFoundError:
        raise DataError(f"{path}: no such PNG file{_similar(path)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(start) < 26 or not start.startswith(_SIGNATURE):
        raise DataError(f"{path}: is not a PNG file; masks must be PNG, since other formats change the values")
    return start[24], start[25]


def _pixels(path: Path) -> NDArray[Any]:
    check_regular(path)
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except _BROKEN as error:
        raise DataError(f"{path}: the PNG cannot be read, it may be truncated or damaged ({error})") from error


def _named(depth: int, kind: int) -> str:
    return f"{depth}-bit {_KINDS.get(kind, 'unknown')}"


def _similar(path: Path) -> str:
    """A remark on a file beside it whose name differs in case or ending alone."""
    if not path.parent.is_dir():
        return f": the folder {path.parent} is not there"
    near = sorted(other.name for other in path.parent.iterdir() if other.stem.lower() == path.stem.lower())
    return f"; '{near[0]}' is there, but names must be equal in case and ending" if near else ""
