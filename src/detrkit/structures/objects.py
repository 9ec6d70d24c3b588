"""Annotated objects of one image, and facts about the image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor

__all__ = ["OF_IMAGE", "Objects", "Target"]

OF_IMAGE = {"of_image": True}
"""Metadata of fields that describe the whole image; every other field has one row per object."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Objects of one image; every field has one row per object.

    To add a field, add one line here: selection, repetition, concatenation and device transfer include it.

    Attributes:
        labels: (N,) int64, 0..K-1.
        boxes: (N, 4) cxcywh in [0, 1] of the valid (unpadded) area; inside transforms xyxy in pixels.
        masks: (N, H, W) bool on the padded canvas, or None.
        is_thing: (N,) bool, or None.
        is_copy: (N,) bool, True for copies made by label augmentation; None without label augmentation.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor | None = None
    is_thing: Tensor | None = None
    is_copy: Tensor | None = None

    @classmethod
    def object_fields(cls) -> list[str]:
        """Names of the fields that have one row per object."""
        return [item.name for item in fields(cls) if not item.metadata.get("of_image")]

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def __getitem__(self, index: Tensor | slice | Sequence[int] | int) -> Self:
        """The objects that a mask, positions or a slice select, in that order; image fields stay unchanged."""
        if isinstance(index, int):
            position = range(len(self))[index]  # an IndexError ends iteration
            index = slice(position, position + 1)
        return self.map(lambda value: value[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same objects with ``change`` applied to every object field that is not None."""
        return self._changed(self.object_fields(), change)

    def to(self, device: torch.device | str) -> Self:
        """The same objects with every tensor on ``device``."""
        to_gpu = torch.device(device).type != "cpu"  # a copy to the host must be complete before it is read
        return self._changed(vars(self), lambda value: value.to(device, non_blocking=to_gpu))

    def pin_memory(self) -> Self:
        """The same objects with every tensor in page-locked memory."""
        return self._changed(vars(self), Tensor.pin_memory)

    @classmethod
    def cat(cls, parts: Sequence[Objects]) -> Self:
        """Concatenate objects; a field is None if it is None in all parts.

        Raises:
            ValueError: no parts, or only some parts have a field.
        """
        if not parts:
            raise ValueError("no objects to concatenate: the list is empty")
        joined: dict[str, Tensor] = {}
        for name in cls.object_fields():
            values = [getattr(part, name) for part in parts]
            present = [value for value in values if value is not None]
            if len(present) not in (0, len(values)):
                raise ValueError(f"{name}: {len(present)} of {len(values)} parts have it; give it to all or to none")
            if present:
                joined[name] = torch.cat(present)
        return cls(**joined)

    def _changed(self, names: Iterable[str], change: Callable[[Tensor], Tensor]) -> Self:
        values = ((name, getattr(self, name)) for name in names)
        return replace(self, **{name: change(value) for name, value in values if isinstance(value, Tensor)})


@dataclass(frozen=True, kw_only=True)
class Target(Objects):
    """Ground truth of one image: its objects and image fields.

    Attributes:
        image_id: id of the image in the data set.
        original_size: (height, width) in pixels of the upright file.
        size: (height, width) of the valid area after the transforms.
        negatives: (K,) labels verified to be absent (LVIS), or None.
        not_exhaustive: (E,) labels that are not exhaustively annotated (LVIS), or None.
        ignored: (R, 4) cxcywh in [0, 1] of the valid area, regions where nothing that is found is wrong, or None.
    """

    image_id: int = field(default=0, metadata=OF_IMAGE)
    original_size: tuple[int, int] = field(default=(0, 0), metadata=OF_IMAGE)
    size: tuple[int, int] = field(default=(0, 0), metadata=OF_IMAGE)
    negatives: Tensor | None = field(default=None, metadata=OF_IMAGE)
    not_exhaustive: Tensor | None = field(default=None, metadata=OF_IMAGE)
    ignored: Tensor | None = field(default=None, metadata=OF_IMAGE)

    def originals(self) -> Self:
        """The target without the copies made by label augmentation."""
        return self if self.is_copy is None else replace(self[~self.is_copy], is_copy=None)
