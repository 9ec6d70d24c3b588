"""Random colour changes on Pillow images: those of SSD, and those of ``strong_album`` of the Relation-DETR repository.

The latter are reimplemented without albumentations, with the same strengths and probabilities. Colours use Pillow's
8-bit HSV, whose hue has 256 steps instead of OpenCV's 180, and random numbers come from torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

__all__ = ["chance", "distort_colours", "jitter_colours", "uniform"]

_T = TypeVar("_T")
_Pixels = NDArray[np.float32]


def chance(probability: float) -> bool:
    """True with this probability."""
    return float(torch.rand(())) < probability


def uniform(low: float, high: float) -> float:
    """A random number in [low, high)."""
    return low + (high - low) * float(torch.rand(()))


def distort_colours(image: Image.Image) -> Image.Image:
    """Random colour changes, in this order.

    Brightness and contrast (probability 0.2), a shift in RGB or HSV (always), JPEG compression (0.2), a permutation of
    the channels (0.1), and blur (0.1).
    """
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


def jitter_colours(image: Image.Image) -> Image.Image:
    """SSD's colour changes, each with probability 0.5 (Liu et al., section 2.2 and the official code).

    Brightness by up to 32 of 255, contrast and saturation by a factor of 0.5 to 1.5, hue by up to 18 degrees of 180.
    Contrast comes first or last, with equal probability.
    """
    contrast_first = chance(0.5)
    if chance(0.5):
        brightness = np.float32(uniform(-32, 32))
        image = _on_pixels(image, lambda pixels: pixels + brightness)
    if contrast_first:
        image = _change_contrast(image)
    if chance(0.5):
        saturation = np.array([1, uniform(0.5, 1.5), 1], np.float32)
        image = _on_pixels(image, lambda pixels: pixels * saturation, "HSV")
    if chance(0.5):
        hue = uniform(-18 / 180, 18 / 180)
        image = _on_pixels(image, lambda pixels: _shifted_hsv(pixels, hue=hue), "HSV")
    return image if contrast_first else _change_contrast(image)


def _change_contrast(image: Image.Image) -> Image.Image:
    if not chance(0.5):
        return image
    contrast = np.float32(uniform(0.5, 1.5))
    return _on_pixels(image, lambda pixels: pixels * contrast)


def _one_of(choices: Sequence[_T]) -> _T:
    return choices[int(torch.randint(len(choices), ()))]


def _on_pixels(image: Image.Image, change: Callable[[_Pixels], _Pixels], mode: str = "RGB") -> Image.Image:
    """Apply ``change`` to the (H, W, 3) values in the colour space ``mode``; round and clip the result to 0 … 255."""
    values = change(np.asarray(image.convert(mode), np.float32))
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8), mode=mode).convert("RGB")


def _brighten(image: Image.Image) -> Image.Image:
    """Increase contrast by 10 to 30 % and add 10 to 30 % of white; the preset never decreases them."""
    contrast, brightness = uniform(0.1, 0.3), uniform(0.1, 0.3)
    return _on_pixels(image, lambda pixels: pixels * np.float32(1 + contrast) + np.float32(255 * brightness))


def _shift_rgb(image: Image.Image) -> Image.Image:
    """Shift every channel separately by up to 10 levels of 255."""
    offset = np.array([uniform(-10, 10) for _ in range(3)], np.float32)
    return _on_pixels(image, lambda pixels: pixels + offset)


def _shift_hsv(image: Image.Image) -> Image.Image:
    """Shift the hue by up to 40 degrees, the saturation by up to 30 and the value by up to 20 levels of 255."""
    hue, saturation, value = uniform(-20 / 180, 20 / 180), uniform(-30, 30), uniform(-20, 20)
    return _on_pixels(image, lambda pixels: _shifted_hsv(pixels, hue=hue, saturation=saturation, value=value), "HSV")


def _shifted_hsv(pixels: _Pixels, *, hue: float, saturation: float = 0, value: float = 0) -> _Pixels:
    """HSV values shifted by a part of the hue circle, and by levels of 255 of saturation and value."""
    moved: _Pixels = (pixels + np.array([256 * hue, saturation, value], np.float32)).round()
    moved[..., 0] %= 256
    return moved


def _compress(image: Image.Image) -> Image.Image:
    """Compress as JPEG with a quality of 85 to 95."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(torch.randint(85, 96, ())))
    with Image.open(file) as compressed:
        return compressed.convert("RGB")
