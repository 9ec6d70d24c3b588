"""Images for a model, in numpy: the same numbers as :class:`detrkit.data.transforms.EvalTransform`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.data.sizes import fitted_shape, resize_shape, truncated_shape
from detrkit.runtime.info import ArtefactInfo, Preprocess

__all__ = ["on_canvas", "resized"]


def resized(image: Image.Image, rule: Preprocess, canvas: tuple[int, int] | None = None) -> Image.Image:
    """An upright RGB image at the size for the model.

    canvas: (height, width) that it must fit into; None: any.
    """
    if rule.resize == "round":
        shape = fitted_shape(resize_shape(image.height, image.width, rule.short_side, rule.max_side), canvas)
        size = shape[1], shape[0]
        return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
    shape = fitted_shape(truncated_shape(image.height, image.width, rule.short_side, rule.max_side), canvas)
    if shape == (image.height, image.width):
        return image
    return Image.fromarray(_resampled(np.asarray(image), shape))


def on_canvas(
    images: Sequence[NDArray[np.generic]], info: ArtefactInfo
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Pad images (3, H_i, W_i) with zeros at the right and bottom to one canvas of the model.

    Returns:
        Images (B, 3, H, W) and padding mask (B, H, W), True = padding. Where the file takes more images at once than
        there are, the last one fills its batch.
    """
    images = [*images, *[images[-1]] * ((info.batch or 0) - len(images))]
    height, width = info.canvas(max(image.shape[1] for image in images), max(image.shape[2] for image in images))
    canvas = np.zeros((len(images), 3, height, width), images[0].dtype)
    mask = np.ones((len(images), height, width), np.bool_)
    for index, image in enumerate(images):
        canvas[index, :, : image.shape[1], : image.shape[2]] = image
        mask[index, : image.shape[1], : image.shape[2]] = False
    return canvas, mask


def _resampled(pixels: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) resampled with a triangle as wide as the step (antialiased bilinear), columns first.

    Computed in float32 as torch's ``interpolate(antialias=True)`` does, then rounded, halves to even.
    """
    wide = _along(pixels.astype(np.float32).transpose(1, 0, 2), shape[1]).transpose(1, 0, 2)
    return np.rint(_along(wide, shape[0])).astype(np.uint8)


def _along(values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Values (N, …) resampled along their first axis to ``size``."""
    number = len(values)
    first, weights = _triangles(number, size)
    found = values[first] * weights[0][:, None, None]
    for step in range(1, len(weights)):
        # one term after the other, each rounded once, in the order of torch
        product = values[np.minimum(first + step, number - 1)].astype(np.float64) * weights[step][:, None, None]
        found = (found + product).astype(np.float32)
    return found


def _triangles(number: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """First sample of every output, and the weights (taps, size) of the samples from there on."""
    one, half = np.float32(1), np.float32(0.5)
    scale = np.float32(number) / np.float32(size)
    support = scale if scale >= 1 else one
    inverse = one / scale if scale >= 1 else one
    centre = scale * (np.arange(size, dtype=np.float32) + half)
    first = np.maximum((centre - support + half).astype(np.int64), 0)
    count = np.minimum((centre + support + half).astype(np.int64), number) - first
    taps = np.arange(int(count.max()), dtype=np.int64)[:, None]
    distance = np.abs(((taps + first).astype(np.float32) - centre + half) * inverse)
    weights = np.where((distance < 1) & (taps < count), one - distance, np.float32(0)).astype(np.float32)
    total = np.zeros(size, np.float32)
    for row in weights:
        total += row
    return first, weights / total
