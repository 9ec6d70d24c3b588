"""Reading an image of any kind as upright 8-bit RGB."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Union, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from detrkit.data.arrays import Channels, image_of_array, image_of_tensor, is_tensor, to_uint8
from detrkit.data.pixel_limit import check_pixels, reduction, too_large
from detrkit.errors import DataError
from detrkit.files import check_regular

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ImageSource", "Picture", "image_size", "read_image", "read_picture", "stored_size"]

ImageSource = Union[str, Path, bytes, IO[bytes], Image.Image, NDArray[np.generic], "Tensor"]

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


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as it was decoded, and the (width, height) of the upright file, which may be larger."""

    image: Image.Image
    full_size: tuple[int, int]

    @property
    def is_reduced(self) -> bool:
        """Whether it was decoded smaller than it is."""
        return self.image.size != self.full_size


def read_picture(
    source: ImageSource,
    *,
    seen: tuple[int, int],
    channels: Channels = "rgb",
    name: str | None = None,
    max_pixels: int | None = None,
) -> Picture:
    """Read an image for a model that resizes it to ``seen`` (shorter, longer side at most).

    A JPEG that is too large is decoded at a half, a quarter or an eighth of its size, which a warning says. It is
    refused where that is smaller than ``seen``.

    Raises:
        DataError, TypeError: as ``read_image`` raises them.
    """
    name = _name(source) if name is None else name
    source = _contents(source, name)
    if not isinstance(source, str | Path | bytes):
        image = read_image(source, channels=channels, name=name)
        return Picture(image=image, full_size=image.size)
    with _opened(source, name) as opened:
        full = opened.size
        factor = reduction(full, max_pixels, seen) if opened.format == "JPEG" else 1
        if factor > 1:
            opened.draft(None, (full[0] // factor, full[1] // factor))
        check_pixels(opened.size, name, max_pixels)
        turned = _orientation(opened) >= 5
        image = _decode(opened, name, apply_exif=True, frame=None)
    if factor == 1:
        return Picture(image=image, full_size=image.size)
    warnings.warn(
        f"{name}: {full[0]}x{full[1]} pixels ({full[0] * full[1] / 1e6:.0f} megapixels) are decoded at 1/{factor} of "
        f"the size, {opened.width}x{opened.height}, because all of them are over the limit; what is found is given in "
        "pixels of the full size",
        stacklevel=2,
    )
    return Picture(image=image, full_size=full[::-1] if turned else full)


def read_image(
    source: ImageSource,
    *,
    apply_exif: bool = True,
    frame: tuple[int, int] | None = None,
    channels: Channels = "rgb",
    name: str | None = None,
    max_pixels: int | None = None,
) -> Image.Image:
    """Read an image as 8-bit RGB, rotated by its EXIF orientation.

    Alpha is dropped, 16-bit values are scaled from their full range, and animations give their first frame.

    Args:
        source: path, encoded bytes or an open file of them, Pillow image, array (H, W) or (H, W, 1|3|4), or tensor
            (H, W) or (1|3|4, H, W); the ranges of values are those of :func:`~detrkit.data.arrays.to_uint8`.
        apply_exif: whether to rotate.
        frame: (width, height) in the annotations. If it is the size of the stored image and not of the upright one,
            the annotations were drawn without rotation, and the image is not rotated either.
        channels: order of the colours of an array or tensor; other sources know theirs.
        name: what messages call the image; default: its path.
        max_pixels: pixels of the largest picture that is decoded; None: as many as fit into memory.

    Raises:
        DataError: the image is missing, not a regular file, not an image, truncated, too large, or its size is not
            ``frame``.
        TypeError: the source has another type.
    """
    name = _name(source) if name is None else name
    source = _contents(source, name)
    if isinstance(source, np.ndarray):
        image = image_of_array(source, name, channels)
    elif is_tensor(source):
        image = image_of_tensor(cast("Tensor", source), name, channels)
    elif isinstance(source, Image.Image):
        image = _decode(source, name, apply_exif, frame)
    elif not isinstance(source, str | Path | bytes):
        kinds = "a path, bytes, an open file, a Pillow image, an array or a tensor"
        raise TypeError(f"an image is {kinds}, not {type(source).__name__}")
    else:
        with _opened(source, name) as opened:
            check_pixels(opened.size, name, max_pixels)
            image = _decode(opened, name, apply_exif, frame)
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
    check_regular(Path(path))
    try:
        with Image.open(path) as image:
            if _orientation(image) < 5:
                return image.size
            if image.format != "TIFF":
                return image.height, image.width
        return read_image(path).size  # Pillow rotates TIFF files itself, at a time that depends on its version
    except Exception as error:  # decoders raise almost anything for broken files
        raise _unreadable(str(path), error) from error


def stored_size(path: Path) -> tuple[int, int]:
    """(width, height) before the EXIF rotation, which tools that draw masks may not know."""
    with Image.open(path) as opened:
        return opened.size


@contextlib.contextmanager
def _opened(source: str | Path | bytes, name: str) -> Iterator[Image.Image]:
    """An image whose header has been read; whatever is wrong with it is a DataError."""
    try:
        if not isinstance(source, bytes):
            check_regular(Path(source))
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            yield opened
    except DataError:
        raise
    except Exception as error:  # decoders raise almost anything for broken files
        raise _unreadable(name, error) from error


def _contents(source: ImageSource, name: str) -> ImageSource:
    """The source, of an open file what is left to read in it."""
    if not hasattr(source, "read"):
        return source
    content = source.read()
    if not isinstance(content, bytes):
        raise DataError(f'{name}: is open as text; open it with mode "rb"')
    if not content:
        raise DataError(f"{name}: nothing is left to read in this open file; go back to its start by seek(0)")
    return content


def _name(source: ImageSource) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "image in memory")
    if isinstance(name := getattr(source, "name", None), str):  # of an open file
        return name
    return "image in memory"


def _unreadable(name: str, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{name}: no such image file")
    if isinstance(error, IsADirectoryError):
        return DataError(
            f"{name}: is a folder, not an image; pass the list of its files, or use detrkit predict FOLDER"
        )
    if isinstance(error, Image.DecompressionBombError):
        return DataError(f"{name}: {too_large()}")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{name}: not an image, or an image format that Pillow cannot read")
    if isinstance(error, MemoryError):
        return DataError(f"{name}: not enough memory for this image; make it smaller")
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
    except Exception as error:  # decoders raise almost anything for broken files
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
        # Pillow opens files of 16 bits in one of several modes
        is_16_bit = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
        return Image.fromarray(to_uint8(np.asarray(image), name, is_16_bit=is_16_bit)).convert("RGB")
    if "transparency" in image.info:  # Pillow warns if such palettes are converted directly to RGB
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DataError(f"{name}: images of mode {image.mode} cannot be converted to RGB; save it as RGB") from error
