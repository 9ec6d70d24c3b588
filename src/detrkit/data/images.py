"""Reading an image of any kind as upright 8-bit RGB."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from detrkit.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "ImageSource", "image_size", "read_image"]

ImageSource = str | Path | bytes | Image.Image | NDArray[np.generic]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".jfif", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
# Exceptions of Pillow's decoders for broken files.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(source: ImageSource, *, apply_exif: bool = True, frame: tuple[int, int] | None = None) -> Image.Image:
    """Read an image as 8-bit RGB, rotated by its EXIF orientation.

    Alpha is dropped, 16-bit values are scaled from their full range, and animations give their first frame.

    Args:
        source: path, encoded bytes, Pillow image, or array (H, W) or (H, W, 1|3|4) in RGB order: uint8, uint16, bool,
            or float in [0, 1].
        apply_exif: whether to rotate.
        frame: (width, height) in the annotations. If it is the size of the stored image and not of the upright one,
            the annotations were drawn without rotation, and the image is not rotated either.

    Raises:
        DataError: the image is missing, not an image, truncated, or its size is not ``frame``.
        TypeError: the source has another type.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        image = _from_array(source, name)
    elif isinstance(source, Image.Image):
        image = _decode(source, name, apply_exif, frame)
    elif not isinstance(source, str | Path | bytes):
        raise TypeError(f"an image is a path, bytes, a Pillow image or an array, not {type(source).__name__}")
    else:
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
                image = _decode(opened, name, apply_exif, frame)
        except DataError:
            raise
        except _DECODING_ERRORS as error:
            raise _unreadable(name, error) from error
    if frame is not None and image.size != frame:
        raise DataError(
            f"{name}: the image is {image.width}x{image.height} pixels but its annotations say {frame[0]}x{frame[1]}; "
            "correct width and height (and the boxes) in the annotations, or restore the original image"
        )
    return image


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of the upright image, read from the header of the file.

    Raises:
        DataError: missing or not an image.
    """
    try:
        with Image.open(path) as image:
            if _orientation(image) < 5:
                return image.size
            if image.format != "TIFF":
                return image.height, image.width
        return read_image(path).size  # Pillow rotates TIFF files itself, at a time that depends on its version
    except _DECODING_ERRORS as error:
        raise _unreadable(str(path), error) from error


def _name(source: ImageSource) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "image in memory")
    return "image in memory"


def _unreadable(name: str, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{name}: no such image file")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{name}: is a folder, not an image")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{name}: not an image, or an image format that Pillow cannot read")
    return DataError(f"{name}: the image cannot be read, it may be truncated or damaged ({error})")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # an image with damaged EXIF data is still usable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decode(image: Image.Image, name: str, apply_exif: bool, frame: tuple[int, int] | None) -> Image.Image:
    try:
        image.load()
    except _DECODING_ERRORS as error:
        raise _unreadable(name, error) from error
    orientation = _orientation(image)
    upright = image.size[::-1] if orientation >= 5 else image.size
    rotate = apply_exif and orientation > 1 and not (frame is not None and image.size == frame != upright)
    rgb = _to_rgb(image, name)
    if rotate:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    elif orientation > 1 and rgb is image:
        rgb = image.copy()
    if rgb is not image:  # reading the result again must not rotate it a second time
        for key in _METADATA:
            rgb.info.pop(key, None)
    return rgb


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode[0] in "IF":
        return Image.fromarray(_to_uint8(np.asarray(image), name)).convert("RGB")
    if "transparency" in image.info:  # Pillow warns if such palettes are converted directly to RGB
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DataError(f"{name}: images of mode {image.mode} cannot be converted to RGB; save it as RGB") from error


def _from_array(array: NDArray[np.generic], name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise DataError(f"{name}: an array of shape {array.shape} is not an image; use (H, W), (H, W, 3) or (H, W, 4)")
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array, name))).convert("RGB")


def _to_uint8(array: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.asarray(array, dtype=np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= 65535:
        return np.asarray((array.astype(np.uint32) + 128) // 257, dtype=np.uint8)  # 65535 -> 255
    if np.issubdtype(array.dtype, np.floating) and low >= 0 and high <= 255:  # false for NaN
        return np.asarray(np.rint(array * 255 if high <= 1 else array), dtype=np.uint8)
    raise DataError(f"{name}: pixel values {low} to {high} ({array.dtype}) are not a known range; save it as 8 bit")
