"""Pictures in memory: arrays and tensors of any layout, order of channels and number type, as 8-bit RGB.

Nothing is guessed: the order of channels is stated by the caller, the range of the values follows one table of rules,
and what fits none of them is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Channels", "check_channels", "image_of_array", "image_of_tensor", "is_tensor", "normalised", "to_uint8"]

Channels = Literal["rgb", "bgr"]
"""Order of the colours of arrays and tensors: ``"rgb"``, or ``"bgr"`` as OpenCV reads images."""

_TOLERANCE = 1e-3  # rounding of float pictures in [0, 1], as a share of the range
_DARKEST = 16.0  # a float picture in [0, 255] whose largest value is less is black: rather one in another range
_DARK_16_BIT = 4096  # values of 12 bits in 16


def check_channels(channels: str) -> Channels:
    """The order of channels.

    Raises:
        ValueError: it is neither "rgb" nor "bgr".
    """
    if channels in get_args(Channels):
        return cast(Channels, channels)
    raise ValueError(f"channels is 'rgb' or 'bgr' (images of OpenCV), got {channels!r}")


def is_tensor(value: object) -> bool:
    """Whether this is a torch tensor; torch is not imported for the question."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(value).__mro__)


def image_of_array(array: NDArray[np.generic], name: str, channels: Channels = "rgb") -> Image.Image:
    """The RGB picture of an array (H, W) or (H, W, 1|3|4); a fourth channel, alpha, is dropped.

    Raises:
        DataError: another shape, or values of no known range (see :func:`to_uint8`).
    """
    array = np.asarray(array)  # without masks and matrices
    shape = array.shape
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))):
        raise DataError(
            f"{name}: an array of shape {shape} is not an image; use (H, W), (H, W, 3) or (H, W, 4)"
            + _advice(shape, "array.transpose(1, 2, 0)", "list(array)", channels_first=True)
        )
    return _image(array, name, channels)


def image_of_tensor(tensor: Tensor, name: str, channels: Channels = "rgb") -> Image.Image:
    """The RGB picture of a tensor (H, W) or (1|3|4, H, W) on any device.

    Raises:
        DataError: another shape, or values of no known range (see :func:`to_uint8`).
    """
    value: Any = tensor.detach().cpu()
    shape = tuple(value.shape)
    if value.numel() == 0 or not (value.ndim == 2 or (value.ndim == 3 and shape[0] in (1, 3, 4))):
        raise DataError(
            f"{name}: a tensor of shape {shape} is not an image; use (H, W), (3, H, W) or (4, H, W)"
            + _advice(shape, "tensor.permute(2, 0, 1)", "list(tensor)", channels_first=False)
        )
    array = (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
    return _image(array if array.ndim == 2 else array.transpose(1, 2, 0), name, channels)


def _advice(shape: tuple[int, ...], reorder: str, split: str, *, channels_first: bool) -> str:
    """What to do about a shape."""
    if len(shape) == 4:
        return f"; a batch is passed as a list of images: {split}"
    if len(shape) == 3 and shape[0 if channels_first else 2] in (1, 3, 4):
        return f"; if its channels come {'first' if channels_first else 'last'}: {reorder}"
    return ""


def _image(array: NDArray[np.generic], name: str, channels: Channels) -> Image.Image:
    """array: (H, W) or (H, W, 1|3|4)."""
    pixels = to_uint8(array, name)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    elif pixels.ndim == 3:
        pixels = pixels[:, :, 2::-1] if channels == "bgr" else pixels[:, :, :3]
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def to_uint8(array: NDArray[np.generic], name: str, *, is_16_bit: bool = False) -> NDArray[np.uint8]:
    """Pixel values as 8 bits.

    ============================  =================================================================
    bool                          False is black, True is white
    uint8                         as they are
    other integers, 0 to 255      the values of 8 bits, whatever the type
    other integers, up to 65535   16 bits: 65535 is white
    float, 0 to 1                 1 is white; rounding (a thousandth above or below) is cut off
    float, 0 to 255               255 is white, if any value is above 16
    ============================  =================================================================

    ``is_16_bit``: the integers are known to have 16 bits, as in a file that says so, also where all are small.

    Raises:
        DataError: anything else: negative values, NaN, larger values, other types.
    """
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return np.asarray(array, dtype=np.uint8)
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind not in "iuf":
        raise DataError(f"{name}: an array of type {array.dtype} is not an image; convert it to numpy.uint8")
    low, high = array.min().item(), array.max().item()
    if kind in "iu" and low >= 0 and high <= 255 and not is_16_bit:
        return array.astype(np.uint8)
    if kind in "iu" and low >= 0 and high <= 65535:
        if high < _DARK_16_BIT and not is_16_bit:
            warnings.warn(
                f"{name}: 16-bit values up to {high} of 65535 are an almost black image; multiply values of 12 bits "
                "by 16 first",
                stacklevel=2,
            )
        return np.asarray((array.astype(np.uint32) + 128) // 257, dtype=np.uint8)
    if kind == "f" and low >= -_TOLERANCE and high <= 1 + _TOLERANCE:  # false for NaN
        return np.rint(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    if kind == "f" and low >= -_TOLERANCE * 255 and _DARKEST < high <= 255 + _TOLERANCE * 255:
        return np.rint(np.clip(array.astype(np.float32), 0, 255)).astype(np.uint8)
    raise DataError(f"{name}: pixel values {low:g} to {high:g} ({array.dtype}) are not a known range; {_remedy(low)}")


def _remedy(low: float) -> str:
    if low < 0:
        return "undo a normalisation, or clip negative values"
    if low != low:
        return "replace NaN"
    return "save it as 8 bit, or scale or clip it to 0 to 1"


def normalised(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """(x / 255 - mean) / std of an RGB image as (3, H, W), plane by plane: a plane stays in the cache.

    The operations are torchvision's, so that the numbers are the same to the last bit.
    """
    pixels = np.empty((3, image.height, image.width), dtype=np.float32)
    for plane, out, centre, scale in zip(image.split(), pixels, mean, std, strict=True):
        np.multiply(np.asarray(plane), np.float32(1 / 255), out=out)
        out -= np.float32(centre)
        out /= np.float32(scale)
    return pixels
