"""DETR's augmentation and evaluation resize on ``torchvision.transforms.v2``.

A transform takes an upright RGB image and its record and returns a ``Sample``. Randomness comes from torch's global
generator, which ``DetectionDataset`` seeds for every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from detrkit.data.photometric import chance, distort_colours, uniform
from detrkit.data.records import ImageRecord
from detrkit.structures import Sample, Target

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "EvalTransform", "TrainTransform", "resize_shape", "truncated_shape"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize_shape(height: int, width: int, short_side: int, max_side: int | None = None) -> tuple[int, int]:
    """(height, width) with the shorter side at ``short_side``, unless the longer would pass ``max_side``.

    Rounds as the official code does: the shorter side to the nearest when ``max_side`` limits it, the longer side
    always down.
    """
    low, high = min(height, width), max(height, width)
    if max_side is not None and high * short_side > max_side * low:
        short_side = max(1, round(max_side * low / high))
    if low == short_side:
        return height, width
    if width < height:
        return short_side * height // width, short_side
    return short_side, short_side * width // height


def truncated_shape(height: int, width: int, short_side: int, max_side: int | None = None) -> tuple[int, int]:
    """The same as the Relation-DETR repository evaluates: both sides times one ratio in float32, truncated.

    float32 gives a pixel less than exact arithmetic for many sizes: 375 x 500 becomes 799 x 1066.
    """
    sides = np.array([height, width], np.float32)
    # torch divides a number by a tensor as number * (1 / tensor); dividing at once would round to other sizes
    inverse = np.float32(1) / sides
    ratio = np.float32(short_side) * inverse.max()
    if max_side is not None:
        ratio = min(ratio, np.float32(max_side) * inverse.min())
    new_height, new_width = (sides * ratio).astype(np.int64).clip(min=1).tolist()
    return new_height, new_width


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Resize and normalise. mean, std: of RGB in [0, 1].

    resize: "round", DETR's sizes and Pillow's resampling; "float32_truncate", sizes by :func:`truncated_shape` and
    resampling in float32, rounded once.
    """

    short_side: int = 800
    max_side: int | None = 1333
    resize: Literal["round", "float32_truncate"] = "round"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, image: Image.Image, record: ImageRecord) -> Sample:
        boxes = _boxes(record)
        if self.resize == "round":
            image, boxes = _resize(image, boxes, self.short_side, self.max_side)
        else:
            shape = list(truncated_shape(image.height, image.width, self.short_side, self.max_side))
            pixels = F.resize(F.pil_to_tensor(image).float(), shape, antialias=True).round().to(torch.uint8)
            image, boxes = F.to_pil_image(pixels), F.resize(boxes, shape)
        return _sample(image, boxes, torch.tensor(record.labels), record, self.mean, self.std)


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """DETR's training augmentation.

    A horizontal flip (probability ``flip``), and for images without an up and down, such as microscope or aerial ones,
    a vertical one (``vertical_flip``, not in DETR); then, one time in two where ``crop`` is set, a resize to one of
    ``crop_short_sides`` and a random crop whose sides are uniform in ``crop_size`` (bounded by the image); last a
    resize to one of ``short_sides`` within ``max_side``. A crop drops only boxes that it leaves nothing of.

    augmentation: "detr" is that alone; "strong" adds what ``strong_album`` of the Relation-DETR repository does: one
    time in two a shift by up to 1/16 of each side (in whole pixels, black beyond the image), and other colours always
    (see :mod:`detrkit.data.photometric`). That preset flips vertically too: set ``vertical_flip`` to 0.5.
    """

    short_sides: Sequence[int] = tuple(range(480, 801, 32))
    max_side: int | None = 1333
    crop: bool = True
    flip: float = 0.5
    vertical_flip: float = 0.0
    crop_short_sides: Sequence[int] = (400, 500, 600)
    crop_size: tuple[int, int] = (384, 600)
    augmentation: Literal["detr", "strong"] = "detr"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, image: Image.Image, record: ImageRecord) -> Sample:
        boxes, labels = _boxes(record), torch.tensor(record.labels)
        if chance(self.flip):
            image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
        if self.vertical_flip and chance(self.vertical_flip):
            image, boxes = F.vertical_flip(image), F.vertical_flip(boxes)
        if self.crop and chance(0.5):
            image, boxes = _resize(image, boxes, _choice(self.crop_short_sides), None)
            image, boxes, labels = self._crop(image, boxes, labels)
        image, boxes = _resize(image, boxes, _choice(self.short_sides), self.max_side)
        if self.augmentation == "strong":
            if chance(0.5):
                down, right = (round(uniform(-1, 1) / 16 * side) for side in (image.height, image.width))
                image, boxes, labels = _cut(image, boxes, labels, (-down, -right, image.height, image.width))
            image = distort_colours(image)
        return _sample(image, boxes, labels, record, self.mean, self.std)

    def _crop(self, image: Image.Image, boxes: Tensor, labels: Tensor) -> tuple[Image.Image, Tensor, Tensor]:
        least, most = self.crop_size
        width = _uniform(min(least, image.width), min(most, image.width))
        height = _uniform(min(least, image.height), min(most, image.height))
        region = (_uniform(0, image.height - height), _uniform(0, image.width - width), height, width)
        return _cut(image, boxes, labels, region)


def _cut(
    image: Image.Image, boxes: Tensor, labels: Tensor, region: tuple[int, int, int, int]
) -> tuple[Image.Image, Tensor, Tensor]:
    """A region (top, left, height, width), black beyond the image, with the boxes it leaves something of."""
    boxes = F.crop(boxes, *region)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return F.crop(image, *region), tv_tensors.wrap(boxes[kept], like=boxes), labels[kept]


def _uniform(low: int, high: int) -> int:
    """A whole number in [low, high]."""
    return int(torch.randint(low, high + 1, ()))


def _choice(values: Sequence[int]) -> int:
    return values[_uniform(0, len(values) - 1)]


def _boxes(record: ImageRecord) -> Tensor:
    canvas = (record.height, record.width)
    boxes = torch.tensor(record.boxes, dtype=torch.float32)
    wrapped: Tensor = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas)
    return wrapped


def _resize(image: Image.Image, boxes: Tensor, short_side: int, max_side: int | None) -> tuple[Image.Image, Tensor]:
    height, width = resize_shape(image.height, image.width, short_side, max_side)
    if (width, height) == image.size:
        return image, boxes
    image = F.resize(image, [height, width], interpolation=InterpolationMode.BILINEAR)
    return image, F.resize(boxes, [height, width])


def _sample(
    image: Image.Image,
    boxes: Tensor,
    labels: Tensor,
    record: ImageRecord,
    mean: Sequence[float],
    std: Sequence[float],
) -> Sample:
    pixels = F.normalize(
        F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True), mean=list(mean), std=list(std), inplace=True
    )
    corners = boxes.as_subclass(Tensor) / torch.tensor([image.width, image.height] * 2)
    corners = corners.clamp(0, 1)
    low, high = corners[:, :2], corners[:, 2:]
    kept = (high > low).all(dim=1)  # float32 may flatten a sliver of a box
    target = Target(
        labels=labels[kept],
        boxes=torch.cat([(low + high) / 2, high - low], dim=1)[kept],
        image_id=record.image_id,
        original_size=(record.height, record.width),
        size=(image.height, image.width),
        negatives=None if record.negatives is None else torch.tensor(record.negatives),
        not_exhaustive=None if record.not_exhaustive is None else torch.tensor(record.not_exhaustive),
    )
    return Sample(pixels, target)
