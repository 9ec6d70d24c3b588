"""DETR's augmentation and evaluation resize on ``torchvision.transforms.v2``.

A transform takes an upright RGB image and its record and returns a ``Sample``. On the way the fields of the objects
that have a place in the image are tv_tensors, so that one operation moves them all; the others follow their objects.
Randomness comes from torch's global generator, which ``DetectionDataset`` seeds for every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from detrkit.data.annotations import objects_of
from detrkit.data.photometric import chance, distort_colours, uniform
from detrkit.data.records import ImageRecord
from detrkit.structures import Objects, Sample, Target

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "EvalTransform",
    "TrainTransform",
    "placed_objects",
    "resize_shape",
    "truncated_shape",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Place = TypeVar("Place", Image.Image, Tensor)


class _Operation(Protocol):
    """A geometric operation: the same on an image and on whatever has a place in it."""

    def __call__(self, value: Place, /) -> Place: ...


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
        objects = placed_objects(record)
        if self.resize == "round":
            image, objects = _resize(image, objects, self.short_side, self.max_side)
        else:
            shape = truncated_shape(image.height, image.width, self.short_side, self.max_side)
            image, objects = _move(partial(_resize_in_float32, shape=shape), image, objects)
        return _sample(image, objects, record, self.mean, self.std)


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
        image, objects = self.augment(image, placed_objects(record))
        return _sample(image, objects, record, self.mean, self.std)

    def augment(self, image: Image.Image, objects: Objects) -> tuple[Image.Image, Objects]:
        """The image and its objects (of :func:`placed_objects`) after all that is random."""
        if chance(self.flip):
            image, objects = _move(F.horizontal_flip, image, objects)
        if self.vertical_flip and chance(self.vertical_flip):
            image, objects = _move(F.vertical_flip, image, objects)
        if self.crop and chance(0.5):
            image, objects = _resize(image, objects, _choice(self.crop_short_sides), None)
            image, objects = self._crop(image, objects)
        image, objects = _resize(image, objects, _choice(self.short_sides), self.max_side)
        if self.augmentation == "strong":
            if chance(0.5):
                down, right = (round(uniform(-1, 1) / 16 * side) for side in (image.height, image.width))
                image, objects = _cut(image, objects, (-down, -right, image.height, image.width))
            image = distort_colours(image)
        return image, objects

    def _crop(self, image: Image.Image, objects: Objects) -> tuple[Image.Image, Objects]:
        least, most = self.crop_size
        width = _uniform(min(least, image.width), min(most, image.width))
        height = _uniform(min(least, image.height), min(most, image.height))
        region = (_uniform(0, image.height - height), _uniform(0, image.width - width), height, width)
        return _cut(image, objects, region)


def placed_objects(record: ImageRecord) -> Objects:
    """The objects of an image, their boxes as tv_tensors in its pixels."""
    objects = objects_of(record.segments, size=(record.width, record.height))
    canvas = (record.height, record.width)
    return replace(objects, boxes=tv_tensors.BoundingBoxes(objects.boxes.float(), format="XYXY", canvas_size=canvas))


def _move(operation: _Operation, image: Image.Image, objects: Objects) -> tuple[Image.Image, Objects]:
    """The operation on the image and on every field that has a place in it, without the objects that it leaves nothing
    of."""
    objects = objects.map(lambda value: operation(value) if isinstance(value, tv_tensors.TVTensor) else value)
    left = (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(dim=1)
    return operation(image), objects if left.all() else objects.map(lambda value: _rows(value, left))


def _rows(value: Tensor, chosen: Tensor) -> Tensor:
    """The chosen rows, still a tv_tensor where the value is one."""
    rows: Tensor = value[chosen]
    return tv_tensors.wrap(rows, like=value) if isinstance(value, tv_tensors.TVTensor) else rows


def _cut(image: Image.Image, objects: Objects, region: tuple[int, int, int, int]) -> tuple[Image.Image, Objects]:
    """A region (top, left, height, width), black beyond the image."""
    top, left, height, width = region
    return _move(partial(F.crop, top=top, left=left, height=height, width=width), image, objects)


def _resize(image: Image.Image, objects: Objects, short_side: int, max_side: int | None) -> tuple[Image.Image, Objects]:
    height, width = resize_shape(image.height, image.width, short_side, max_side)
    if (width, height) == image.size:
        return image, objects
    resize = partial(F.resize, size=[height, width], interpolation=InterpolationMode.BILINEAR)
    return _move(resize, image, objects)


def _resize_in_float32(value: Place, shape: tuple[int, int]) -> Place:
    if not isinstance(value, Image.Image):
        return F.resize(value, list(shape))
    pixels = F.resize(F.pil_to_tensor(value).float(), list(shape), antialias=True)
    return F.to_pil_image(pixels.round().to(torch.uint8))


def _uniform(low: int, high: int) -> int:
    """A whole number in [low, high]."""
    return int(torch.randint(low, high + 1, ()))


def _choice(values: Sequence[int]) -> int:
    return values[_uniform(0, len(values) - 1)]


def _sample(
    image: Image.Image, objects: Objects, record: ImageRecord, mean: Sequence[float], std: Sequence[float]
) -> Sample:
    pixels = F.normalize(
        F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True), mean=list(mean), std=list(std), inplace=True
    )
    objects = objects.map(lambda value: value.as_subclass(Tensor))
    corners = objects.boxes / torch.tensor([image.width, image.height] * 2)
    corners = corners.clamp(0, 1)
    low, high = corners[:, :2], corners[:, 2:]
    objects = replace(objects, boxes=torch.cat([(low + high) / 2, high - low], dim=1))
    target = Target(
        **vars(objects[(high > low).all(dim=1)]),  # float32 may flatten a sliver of a box
        image_id=record.image_id,
        original_size=(record.height, record.width),
        size=(image.height, image.width),
        negatives=None if record.negatives is None else torch.tensor(record.negatives),
        not_exhaustive=None if record.not_exhaustive is None else torch.tensor(record.not_exhaustive),
    )
    return Sample(pixels, target)
