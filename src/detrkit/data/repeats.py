"""Repeat factors for images of rare classes. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["images_of_classes", "repeat_factors", "with_copies"]


def images_of_classes(labels: Sequence[NDArray[np.int64]], *, num_classes: int = 0) -> NDArray[np.int64]:
    """The number of images of each class: (max(num_classes, largest label + 1),).

    labels: the labels of the objects of each image.
    """
    present = [np.unique(image_labels) for image_labels in labels]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *present]), minlength=num_classes)


def repeat_factors(labels: Sequence[NDArray[np.int64]], *, threshold: float = 0.001) -> NDArray[np.float64]:
    """The mean number of times that an epoch contains each image (repeat factor sampling; Gupta et al., LVIS).

    r_i = max over the classes c of image i of max(1, sqrt(threshold / f_c)), where f_c is the fraction of the images
    with class c; 1 for images without objects.

    labels: the labels of the objects of each image.
    """
    class_factors = np.sqrt(threshold * len(labels) / np.maximum(images_of_classes(labels), 1))
    return np.asarray([class_factors[image_labels].max(initial=1.0) for image_labels in labels])


def with_copies(factors: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float64]]:
    """Repeat every index as often as its factor, rounded up; also the probability that an epoch contains each copy.

    A factor of 2.3 gives three copies with probabilities 1, 1 and 0.3. Every copy is augmented separately.
    """
    times = np.ceil(factors).astype(np.int64)
    positions = np.repeat(np.arange(len(factors)), times)
    copy = np.arange(len(positions)) - np.repeat(np.cumsum(times) - times, times)
    return positions.tolist(), np.minimum(1.0, factors[positions] - copy)
