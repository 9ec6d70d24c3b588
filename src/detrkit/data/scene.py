"""An image and its objects on their way through a transform."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from detrkit.data.annotations import objects_of
from detrkit.data.geometry import Geometry
from detrkit.data.records import ImageRecord
from detrkit.data.segments import rules_of
from detrkit.structures import Objects

__all__ = ["Scene", "record_objects", "resize_in_float32"]

Spatial = TypeVar("Spatial", Image.Image, Tensor)


class _Operation(Protocol):
    """A geometric operation that applies to an image and its boxes."""

    def __call__(self, value: Spatial, /) -> Spatial: ...


class _Resample(Protocol):
    """A resize that applies to an image and its boxes."""

    def __call__(self, value: Spatial, /, *, shape: tuple[int, int]) -> Spatial: ...


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image on its way through a transform.

    Attributes:
        image: RGB.
        objects: with boxes as tv_tensors xyxy in pixels of the image; None where objects have masks, which are drawn
            at the end.
        geometry: where the pixels of the image lie in the original.
    """

    image: Image.Image
    objects: Objects | None
    geometry: Geometry

    @classmethod
    def of(cls, image: Image.Image, record: ImageRecord, task: str = "det") -> Scene:
        """The image of a record as it is in the file."""
        size = record.width, record.height
        return cls(
            image=image, objects=None if rules_of(task).masks else record_objects(record), geometry=Geometry.whole(size)
        )

    def flipped(self, *, vertically: bool = False) -> Scene:
        """Mirrored, left to right or top to bottom."""
        geometry = self.geometry.flipped(vertically=vertically)
        return self._apply(F.vertical_flip if vertically else F.horizontal_flip, geometry)

    def cropped(self, region: tuple[int, int, int, int]) -> Scene:
        """Cut to a region (top, left, height, width), filled with black outside the image."""
        top, left, height, width = region
        return self._apply(
            partial(F.crop, top=top, left=left, height=height, width=width), self.geometry.cropped(region)
        )

    def resized(self, shape: tuple[int, int], resample: _Resample | None = None) -> Scene:
        """Resized to (height, width), with Pillow's bilinear resampling by default."""
        return self._apply(partial(resample or _resize_bilinear, shape=shape), self.geometry.resized(*shape))

    def final_objects(self, record: ImageRecord, task: str) -> Objects:
        """The objects in pixels of the image, as plain tensors."""
        if self.objects is not None:
            return self.objects.map(lambda value: value.as_subclass(Tensor))
        size = record.width, record.height
        objects = objects_of(
            record.segments, size=size, task=task, geometry=self.geometry, segment_map=record.segment_map()
        )
        return replace(objects, boxes=objects.boxes.float())

    def _apply(self, operation: _Operation, geometry: Geometry) -> Scene:
        """Apply an operation to the image and to the boxes, and drop objects whose boxes become empty."""
        objects = self.objects
        if objects is not None:
            objects = objects.map(lambda value: operation(value) if isinstance(value, tv_tensors.TVTensor) else value)
            remaining = (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(dim=1)
            if not remaining.all():
                objects = objects.map(lambda value: _rows(value, remaining))
        return Scene(image=operation(self.image), objects=objects, geometry=geometry)


def record_objects(record: ImageRecord) -> Objects:
    """The objects of a record for detection, with boxes as tv_tensors xyxy in pixels of the image."""
    objects = objects_of(record.segments, size=(record.width, record.height))
    canvas = (record.height, record.width)
    return replace(objects, boxes=tv_tensors.BoundingBoxes(objects.boxes.float(), format="XYXY", canvas_size=canvas))


def _rows(value: Tensor, selected: Tensor) -> Tensor:
    """Select rows; a tv_tensor stays one."""
    rows: Tensor = value[selected]
    return tv_tensors.wrap(rows, like=value) if isinstance(value, tv_tensors.TVTensor) else rows


def _resize_bilinear(value: Spatial, *, shape: tuple[int, int]) -> Spatial:
    return F.resize(value, list(shape), interpolation=InterpolationMode.BILINEAR)


def resize_in_float32(value: Spatial, *, shape: tuple[int, int]) -> Spatial:
    if not isinstance(value, Image.Image):
        return F.resize(value, list(shape))
    pixels = F.resize(F.pil_to_tensor(value).float(), list(shape), antialias=True)
    return F.to_pil_image(pixels.round().to(torch.uint8))
