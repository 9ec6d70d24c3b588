"""Annotated objects of one image, and the image they are on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor

__all__ = ["OF_IMAGE", "Objects", "Target"]

OF_IMAGE = {"of_image": True}
"""Marks a field that says something of the whole image; every other field has one row per object."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Objects of one image, one row of every field per object.

    A further field is one more line here: selecting, repeating, concatenating and moving objects carries it.

    Attributes:
        labels: (N,) int64, 0..K-1.
        boxes: (N, 4) cxcywh in [0, 1] of the image's valid (unpadded) area; xyxy in pixels until a transform is done.
        masks: (N, H, W) bool on the padded canvas, or None.
        is_thing: (N,) bool, or None.
        is_copy: (N,) bool, True for objects that label augmentation repeated; None when nothing was repeated.
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
        """The objects that a mask, positions or a slice select, in that order; the image's own facts stay."""
        if isinstance(index, int):
            position = range(len(self))[index]  # an IndexError ends iteration
            index = slice(position, position + 1)
        return self.map(lambda value: value[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same objects with ``change`` applied to every field of theirs that is there."""
        return self._changed(self.object_fields(), change)

    def to(self, device: torch.device | str) -> Self:
        """The same with every tensor on ``device``."""
        towards = torch.device(device).type != "cpu"  # a copy to the host must be there when it is read
        return self._changed(vars(self), lambda value: value.to(device, non_blocking=towards))

    def pin_memory(self) -> Self:
        """The same with every tensor in page-locked memory."""
        return self._changed(vars(self), Tensor.pin_memory)

    @classmethod
    def cat(cls, parts: Sequence[Objects]) -> Self:
        """The objects of all parts, one after the other; a field is None where it is None in all of them.

        Raises:
            ValueError: no parts, or some of them lack a field that others have.
        """
        if not parts:
            raise ValueError("no objects to concatenate: the list is empty")
        joined: dict[str, Tensor] = {}
        for name in cls.object_fields():
            values = [getattr(part, name) for part in parts]
            there = [value for value in values if value is not None]
            if len(there) not in (0, len(values)):
                raise ValueError(f"{name}: {len(there)} of {len(values)} parts have it; give it to all or to none")
            if there:
                joined[name] = torch.cat(there)
        return cls(**joined)

    def _changed(self, names: Iterable[str], change: Callable[[Tensor], Tensor]) -> Self:
        values = ((name, getattr(self, name)) for name in names)
        return replace(self, **{name: change(value) for name, value in values if isinstance(value, Tensor)})


@dataclass(frozen=True, kw_only=True)
class Target(Objects):
    """Ground truth of one image: its objects, and what is known of the image.

    Attributes:
        image_id: in the data set's own numbering.
        original_size: (height, width) in pixels of the upright file.
        size: (height, width) of the valid area after the transforms.
        negatives: (K,) labels verified to be absent (LVIS), or None.
        not_exhaustive: (E,) labels of which not every object is here (LVIS), or None.
    """

    image_id: int = field(default=0, metadata=OF_IMAGE)
    original_size: tuple[int, int] = field(default=(0, 0), metadata=OF_IMAGE)
    size: tuple[int, int] = field(default=(0, 0), metadata=OF_IMAGE)
    negatives: Tensor | None = field(default=None, metadata=OF_IMAGE)
    not_exhaustive: Tensor | None = field(default=None, metadata=OF_IMAGE)

    def originals(self) -> Self:
        """The target without the copies that label augmentation added."""
        return self if self.is_copy is None else replace(self[~self.is_copy], is_copy=None)
