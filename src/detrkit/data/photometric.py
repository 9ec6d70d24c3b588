"""The colour part of the Relation-DETR repository's augmentation ``strong_album``, on Pillow images.

Written anew without albumentations, which it is built on there. Strengths and probabilities are the same; colours pass
through Pillow's 8-bit HSV, whose hue has 256 steps where OpenCV's has 180, and random numbers are torch's.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

__all__ = ["chance", "distort_colours", "uniform"]

_T = TypeVar("_T")
_Pixels = NDArray[np.float32]


def chance(probability: float) -> bool:
    """True that often."""
    return float(torch.rand(())) < probability


def uniform(low: float, high: float) -> float:
    """A number in [low, high)."""
    return low + (high - low) * float(torch.rand(()))


def distort_colours(image: Image.Image) -> Image.Image:
    """Brightness and contrast (1 in 5), a shift of colours (always), JPEG (1 in 5), channel order, blur (1 in 10)."""
    if chance(0.2):
        image = _brighten(image)
    image = _one_of((_shift_rgb, _shift_hsv))(image)
    if chance(0.2):
        image = _compress(image)
    if chance(0.1):
        image = Image.merge("RGB", [image.getchannel(channel) for channel in torch.randperm(3).tolist()])
    if chance(0.1):
        image = image.filter(_one_of((ImageFilter.BoxBlur(1), ImageFilter.MedianFilter(3))))
    return image


def _one_of(choices: Sequence[_T]) -> _T:
    return choices[int(torch.randint(len(choices), ()))]


def _on_pixels(image: Image.Image, change: Callable[[_Pixels], _Pixels], mode: str = "RGB") -> Image.Image:
    """The image with its (H, W, 3) values in 0 … 255 changed, rounded and cut off at both ends."""
    values = change(np.asarray(image.convert(mode), np.float32))
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8), mode=mode).convert("RGB")


def _brighten(image: Image.Image) -> Image.Image:
    """10 to 30 % more contrast, and 10 to 30 % of white on top: the preset's limits are both above 0."""
    contrast, brightness = uniform(0.1, 0.3), uniform(0.1, 0.3)
    return _on_pixels(image, lambda pixels: pixels * np.float32(1 + contrast) + np.float32(255 * brightness))


def _shift_rgb(image: Image.Image) -> Image.Image:
    """Up to 10 levels, for every channel another number."""
    offset = np.array([uniform(-10, 10) for _ in range(3)], np.float32)
    return _on_pixels(image, lambda pixels: pixels + offset)


def _shift_hsv(image: Image.Image) -> Image.Image:
    """Up to 40 degrees of hue, 30 levels of saturation and 20 of value."""
    hue, saturation, value = uniform(-20 / 180, 20 / 180), uniform(-30, 30), uniform(-20, 20)
    offset = np.array([256 * hue, saturation, value], np.float32)

    def shifted(pixels: _Pixels) -> _Pixels:
        moved = (pixels + offset).round()
        moved[..., 0] %= 256  # hue is a circle
        return moved

    return _on_pixels(image, shifted, "HSV")


def _compress(image: Image.Image) -> Image.Image:
    """Through JPEG of quality 85 to 95."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(torch.randint(85, 96, ())))
    with Image.open(file) as compressed:
        return compressed.convert("RGB")
