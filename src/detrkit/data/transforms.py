"""DETR's augmentation and evaluation resize on ``torchvision.transforms.v2``, and large-scale jittering.

A transform takes an RGB image, its record and a task, and returns a ``Sample``. Boxes of detection are moved with the
image, operation by operation, as in the official code. Masks are drawn at the end on the transformed image
(:mod:`detrkit.data.geometry`), and their boxes are tight around them. Randomness comes from torch's global generator,
which ``DetectionDataset`` seeds for every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrkit.data.arrays import normalised
from detrkit.data.photometric import chance, distort_colours, jitter_colours, uniform
from detrkit.data.records import ImageRecord
from detrkit.data.scene import Scene, resize_in_float32
from detrkit.data.sizes import fitted_shape, resize_shape, truncated_shape
from detrkit.structures import Sample, Target

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "EvalTransform",
    "TrainTransform",
    "resize_shape",
    "truncated_shape",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
    canvas: tuple[int, int] | None = None
    """(height, width) that the resized image must fit into, for models of one fixed size; None: any."""

    def __call__(self, image: Image.Image, record: ImageRecord, task: str = "det") -> Sample:
        scene = Scene.of(image, record, task)
        if self.resize == "round":
            shape = resize_shape(image.height, image.width, self.short_side, self.max_side)
            scene = _with_shape(scene, fitted_shape(shape, self.canvas))
        else:
            shape = truncated_shape(image.height, image.width, self.short_side, self.max_side)
            scene = scene.resized(fitted_shape(shape, self.canvas), resize_in_float32)
        return _sample(scene, record, task, self.mean, self.std)


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """DETR's training augmentation: flips, with probability 0.5 a resize and random crop, then a final resize.

    A crop drops only objects that are completely outside it.
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
    augmentation: Literal["detr", "strong", "lsj"] = "detr"
    """Crop, sizes and further operations.

    "detr": those above. "strong": afterwards also those of ``strong_album`` of the Relation-DETR repository: with
    probability 0.5 a shift by up to 1/16 of each side (whole pixels, filled with black), and always colour changes
    (:mod:`detrkit.data.photometric`). That preset also flips vertically: set ``vertical_flip`` to 0.5. "lsj": flips and
    large-scale jittering, without the crop and sizes above.
    """
    lsj_size: tuple[int, int] = (1024, 1024)
    """"lsj": maximum (height, width). Larger images are cut to it at a random place, chosen separately along each axis.
    Smaller ones stay small: the batch pads them, and its padding mask says so."""
    lsj_scale: tuple[float, float] = (0.1, 2.0)
    """"lsj": range of the scale. At 1 the image just fits into ``lsj_size``."""
    colors: Literal["none", "ssd"] = "none"
    """Colour changes at the end. "ssd": random brightness, contrast, saturation and hue (Liu et al., SSD)."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of RGB in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of RGB in [0, 1]."""

    ignore_crowds: bool = False
    """Whether crowd regions become the ignored regions of the target."""

    def __call__(self, image: Image.Image, record: ImageRecord, task: str = "det") -> Sample:
        scene = self.augment(Scene.of(image, record, task))
        sample = _sample(scene, record, task, self.mean, self.std)
        if not self.ignore_crowds:
            return sample
        return replace(sample, target=replace(sample.target, ignored=_ignored(scene, record)))

    def augment(self, scene: Scene) -> Scene:
        """Apply the random operations."""
        if chance(self.flip):
            scene = scene.flipped()
        if self.vertical_flip and chance(self.vertical_flip):
            scene = scene.flipped(vertically=True)
        if self.augmentation == "lsj":
            scene = self._jitter(scene)
        else:
            if self.crop and chance(0.5):
                scene = self._random_crop(_with_sides(scene, _choice(self.crop_short_sides), None))
            scene = _with_sides(scene, _choice(self.short_sides), self.max_side)
        if self.augmentation == "strong":
            if chance(0.5):
                down, right = (round(uniform(-1, 1) / 16 * side) for side in (scene.image.height, scene.image.width))
                scene = scene.cropped((-down, -right, scene.image.height, scene.image.width))
            scene = replace(scene, image=distort_colours(scene.image))
        if self.colors == "ssd":
            scene = replace(scene, image=jitter_colours(scene.image))
        return scene

    def _random_crop(self, scene: Scene) -> Scene:
        minimum, maximum = self.crop_size
        width = _uniform(min(minimum, scene.image.width), min(maximum, scene.image.width))
        height = _uniform(min(minimum, scene.image.height), min(maximum, scene.image.height))
        return scene.cropped(_region(scene.image, height, width))

    def _jitter(self, scene: Scene) -> Scene:
        """Resize to a random scale of ``lsj_size``, and cut what exceeds it (Ghiasi et al., Copy-Paste, section 3)."""
        limit_height, limit_width = self.lsj_size
        height, width = scene.image.height, scene.image.width
        scale = uniform(*self.lsj_scale) * min(limit_height / height, limit_width / width)
        scene = scene.resized((max(1, round(scale * height)), max(1, round(scale * width))))
        height, width = min(limit_height, scene.image.height), min(limit_width, scene.image.width)
        return scene.cropped(_region(scene.image, height, width))


def _with_sides(scene: Scene, short_side: int, max_side: int | None) -> Scene:
    """Resized by :func:`resize_shape`."""
    return _with_shape(scene, resize_shape(scene.image.height, scene.image.width, short_side, max_side))


def _with_shape(scene: Scene, shape: tuple[int, int]) -> Scene:
    return scene if shape == (scene.image.height, scene.image.width) else scene.resized(shape)


def _region(image: Image.Image, height: int, width: int) -> tuple[int, int, int, int]:
    """A random part (top, left, height, width) of an image."""
    return _uniform(0, image.height - height), _uniform(0, image.width - width), height, width


def _uniform(low: int, high: int) -> int:
    """A random integer in [low, high]."""
    return int(torch.randint(low, high + 1, ()))


def _choice(values: Sequence[int]) -> int:
    return values[_uniform(0, len(values) - 1)]


def _ignored(scene: Scene, record: ImageRecord) -> Tensor:
    """(R, 4) cxcywh in [0, 1] of the crowd regions of a record, as far as they are in the image."""
    axes = []
    for axis, sides in ((scene.geometry.x, [0, 2]), (scene.geometry.y, [1, 3])):
        ends = np.sort(axis.positions(record.crowd_boxes[:, sides]), axis=1) / axis.length  # a flip exchanges them
        axes.append(ends.clip(0, 1))
    low, high = np.stack([axes[0][:, 0], axes[1][:, 0]], 1), np.stack([axes[0][:, 1], axes[1][:, 1]], 1)
    seen = (high > low).all(1)
    boxes = np.concatenate(((low + high) / 2, high - low), axis=1)[seen]
    return torch.from_numpy(boxes.astype(np.float32))


def _sample(scene: Scene, record: ImageRecord, task: str, mean: Sequence[float], std: Sequence[float]) -> Sample:
    image = scene.image
    pixels = torch.from_numpy(normalised(image, mean, std))
    objects = scene.final_objects(record, task)
    corners = objects.boxes / torch.tensor([image.width, image.height] * 2)
    corners = corners.clamp(0, 1)
    low, high = corners[:, :2], corners[:, 2:]
    objects = replace(objects, boxes=torch.cat([(low + high) / 2, high - low], dim=1))
    remaining = (high > low).all(dim=1)  # very thin boxes may become empty in float32
    target = Target(
        **vars(objects if remaining.all() else objects[remaining]),
        image_id=record.image_id,
        original_size=(record.height, record.width),
        size=(image.height, image.width),
        negatives=None if record.negatives is None else torch.tensor(record.negatives),
        not_exhaustive=None if record.not_exhaustive is None else torch.tensor(record.not_exhaustive),
    )
    return Sample(pixels, target)
