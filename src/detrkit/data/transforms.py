"""DETR's augmentation and evaluation resize on ``torchvision.transforms.v2``.

A transform takes an RGB image and its record and returns a ``Sample``. Meanwhile the spatial fields of the objects
(boxes, masks) are tv_tensors, so that an operation applies to all of them; other fields are only filtered with their
objects. Randomness comes from torch's global generator, which ``DetectionDataset`` seeds for every sample.
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
    "record_objects",
    "resize_shape",
    "truncated_shape",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Spatial = TypeVar("Spatial", Image.Image, Tensor)


class _Operation(Protocol):
    """A geometric operation that applies to an image, its boxes and its masks."""

    def __call__(self, value: Spatial, /) -> Spatial: ...


def resize_shape(height: int, width: int, short_side: int, max_side: int | None = None) -> tuple[int, int]:
    """(height, width) whose shorter side is ``short_side``, or smaller if the longer side would exceed ``max_side``.

    Rounds like the official code: to the nearest for a shorter side that ``max_side`` limits, down for the longer side.
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
    """The evaluation size of the Relation-DETR repository: both sides times one ratio in float32, rounded down.

    For many sizes float32 gives one pixel less than exact arithmetic: 375 x 500 becomes 799 x 1066.
    """
    sides = np.array([height, width], np.float32)
    # torch computes number / tensor as number * (1 / tensor); a direct division would round differently
    inverse = np.float32(1) / sides
    ratio = np.float32(short_side) * inverse.max()
    if max_side is not None:
        ratio = min(ratio, np.float32(max_side) * inverse.min())
    new_height, new_width = (sides * ratio).astype(np.int64).clip(min=1).tolist()
    return new_height, new_width


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Resize and normalise an image."""

    short_side: int = 800
    max_side: int | None = 1333
    resize: Literal["round", "float32_truncate"] = "round"
    """Sizes and resampling. "round": sizes of DETR (:func:`resize_shape`) and Pillow's resampling; "float32_truncate":
    sizes of :func:`truncated_shape` and resampling in float32, rounded once."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of RGB in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of RGB in [0, 1]."""

    def __call__(self, image: Image.Image, record: ImageRecord) -> Sample:
        objects = record_objects(record)
        if self.resize == "round":
            image, objects = _resize(image, objects, self.short_side, self.max_side)
        else:
            shape = truncated_shape(image.height, image.width, self.short_side, self.max_side)
            image, objects = _apply(partial(_resize_in_float32, shape=shape), image, objects)
        return _sample(image, objects, record, self.mean, self.std)


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """DETR's training augmentation: flips, with probability 0.5 a resize and random crop, then a final resize.

    A crop drops only objects whose boxes are completely outside it.
    """

    short_sides: Sequence[int] = tuple(range(480, 801, 32))
    """Shorter sides of the final resize, one chosen at random."""
    max_side: int | None = 1333
    """Maximum of the longer side in the final resize."""
    crop: bool = True
    """Whether to crop with probability 0.5."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: float = 0.0
    """Probability of a vertical flip, for images without a fixed orientation, such as microscope or aerial images (not
    in DETR)."""
    crop_short_sides: Sequence[int] = (400, 500, 600)
    """Shorter sides of the resize before a crop, one chosen at random."""
    crop_size: tuple[int, int] = (384, 600)
    """Minimum and maximum of the crop's height and width in pixels, also limited by the image."""
    augmentation: Literal["detr", "strong"] = "detr"
    """Operations after the final resize. "detr": none; "strong": those of ``strong_album`` of the Relation-DETR
    repository: with probability 0.5 a shift by up to 1/16 of each side (whole pixels, filled with black), and always
    colour changes (:mod:`detrkit.data.photometric`). That preset also flips vertically: set ``vertical_flip`` to 0.5.
    """
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of RGB in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of RGB in [0, 1]."""

    def __call__(self, image: Image.Image, record: ImageRecord) -> Sample:
        image, objects = self.augment(image, record_objects(record))
        return _sample(image, objects, record, self.mean, self.std)

    def augment(self, image: Image.Image, objects: Objects) -> tuple[Image.Image, Objects]:
        """Apply the random operations to an image and its objects (from :func:`record_objects`)."""
        if chance(self.flip):
            image, objects = _apply(F.horizontal_flip, image, objects)
        if self.vertical_flip and chance(self.vertical_flip):
            image, objects = _apply(F.vertical_flip, image, objects)
        if self.crop and chance(0.5):
            image, objects = _resize(image, objects, _choice(self.crop_short_sides), None)
            image, objects = self._random_crop(image, objects)
        image, objects = _resize(image, objects, _choice(self.short_sides), self.max_side)
        if self.augmentation == "strong":
            if chance(0.5):
                down, right = (round(uniform(-1, 1) / 16 * side) for side in (image.height, image.width))
                image, objects = _crop(image, objects, (-down, -right, image.height, image.width))
            image = distort_colours(image)
        return image, objects

    def _random_crop(self, image: Image.Image, objects: Objects) -> tuple[Image.Image, Objects]:
        minimum, maximum = self.crop_size
        width = _uniform(min(minimum, image.width), min(maximum, image.width))
        height = _uniform(min(minimum, image.height), min(maximum, image.height))
        region = (_uniform(0, image.height - height), _uniform(0, image.width - width), height, width)
        return _crop(image, objects, region)


def record_objects(record: ImageRecord) -> Objects:
    """The objects of a record for detection, with boxes as tv_tensors xyxy in pixels of the image."""
    objects = objects_of(record.segments, size=(record.width, record.height))
    canvas = (record.height, record.width)
    return replace(objects, boxes=tv_tensors.BoundingBoxes(objects.boxes.float(), format="XYXY", canvas_size=canvas))


def _apply(operation: _Operation, image: Image.Image, objects: Objects) -> tuple[Image.Image, Objects]:
    """Apply an operation to the image and to all spatial fields, and drop objects whose boxes become empty."""
    objects = objects.map(lambda value: operation(value) if isinstance(value, tv_tensors.TVTensor) else value)
    remaining = (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(dim=1)
    return operation(image), objects if remaining.all() else objects.map(lambda value: _rows(value, remaining))


def _rows(value: Tensor, selected: Tensor) -> Tensor:
    """Select rows; a tv_tensor stays one."""
    rows: Tensor = value[selected]
    return tv_tensors.wrap(rows, like=value) if isinstance(value, tv_tensors.TVTensor) else rows


def _crop(image: Image.Image, objects: Objects, region: tuple[int, int, int, int]) -> tuple[Image.Image, Objects]:
    """Crop to a region (top, left, height, width), filled with black outside the image."""
    top, left, height, width = region
    return _apply(partial(F.crop, top=top, left=left, height=height, width=width), image, objects)


def _resize(image: Image.Image, objects: Objects, short_side: int, max_side: int | None) -> tuple[Image.Image, Objects]:
    height, width = resize_shape(image.height, image.width, short_side, max_side)
    if (width, height) == image.size:
        return image, objects
    resize = partial(F.resize, size=[height, width], interpolation=InterpolationMode.BILINEAR)
    return _apply(resize, image, objects)


def _resize_in_float32(value: Spatial, shape: tuple[int, int]) -> Spatial:
    if not isinstance(value, Image.Image):
        return F.resize(value, list(shape))
    pixels = F.resize(F.pil_to_tensor(value).float(), list(shape), antialias=True)
    return F.to_pil_image(pixels.round().to(torch.uint8))


def _uniform(low: int, high: int) -> int:
    """A random integer in [low, high]."""
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
        **vars(objects[(high > low).all(dim=1)]),  # very thin boxes may become empty in float32
        image_id=record.image_id,
        original_size=(record.height, record.width),
        size=(image.height, image.width),
        negatives=None if record.negatives is None else torch.tensor(record.negatives),
        not_exhaustive=None if record.not_exhaustive is None else torch.tensor(record.not_exhaustive),
    )
    return Sample(pixels, target)
