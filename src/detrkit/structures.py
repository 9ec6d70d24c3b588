"""The nouns every room shares: categories, targets, batches, predictions, detections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "FREQUENCIES",
    "NEGATIVES",
    "NOT_EXHAUSTIVE",
    "Batch",
    "Categories",
    "Category",
    "Detections",
    "Heatmap",
    "Predictions",
    "QueryGroup",
    "Sample",
    "Target",
]

# What LVIS adds to COCO annotations (Gupta et al., LVIS, section 4).
NEGATIVES = "neg_category_ids"
"""Of an image: the classes verified to be absent."""
NOT_EXHAUSTIVE = "not_exhaustive_category_ids"
"""Of an image: the classes of which not every object is annotated."""
FREQUENCIES = ("r", "c", "f")
"""Rare, common, frequent: classes in at most 10, at most 100, and more of the training images."""


@dataclass(frozen=True)
class Category:
    """One class: its id in the data set's own numbering and its name (None = an unused slot)."""

    id: int
    name: str | None


class Categories(tuple[Category, ...]):
    """The classes of a data set or model in label order: label ``k`` is ``categories[k]``.

    Labels are contiguous (0..K-1) inside; ``id`` keeps the number the user's files have.
    """

    __slots__ = ()

    @classmethod
    def from_json(cls, rows: Iterable[dict[str, Any]]) -> Categories:
        """Categories from ``[{"id": int, "name": str | None}, …]`` in label order."""
        return cls(Category(int(row["id"]), row["name"]) for row in rows)

    def to_json(self) -> list[dict[str, Any]]:
        """``[{"id": int, "name": str | None}, …]`` in label order."""
        return [{"id": category.id, "name": category.name} for category in self]

    @property
    def names(self) -> list[str | None]:
        """Names in label order."""
        return [category.name for category in self]

    @property
    def ids(self) -> list[int]:
        """The data set's own ids in label order."""
        return [category.id for category in self]

    @property
    def named(self) -> list[Category]:
        """The classes that exist: slots without a name (gaps of COCO's 91 ids) left out."""
        return [category for category in self if category.name is not None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Ground truth of one image.

    labels (N,) int64, 0..K-1 · boxes (N, 4) cxcywh in [0, 1] of the image's valid (unpadded) area ·
    image_id · original_size (height, width) in pixels of the upright file · size (height, width) of the valid area
    after the transforms · masks (N, H, W) bool on the padded canvas, or None · is_thing (N,) bool, or None ·
    is_copy (N,) bool, True for boxes that label augmentation repeated, or None when nothing was repeated ·
    negatives (K,) labels verified to be absent, not_exhaustive (E,) labels of which not every object is here (LVIS), or
    None.
    """

    labels: Tensor
    boxes: Tensor
    image_id: int = 0
    original_size: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)
    masks: Tensor | None = None
    is_thing: Tensor | None = None
    is_copy: Tensor | None = None
    negatives: Tensor | None = None
    not_exhaustive: Tensor | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def originals(self) -> Target:
        """The target without the copies that label augmentation added."""
        if self.is_copy is None:
            return self
        own = ~self.is_copy
        masks, is_thing = (None if value is None else value[own] for value in (self.masks, self.is_thing))
        return replace(
            self, labels=self.labels[own], boxes=self.boxes[own], masks=masks, is_thing=is_thing, is_copy=None
        )

    def to(self, device: torch.device | str) -> Target:
        """The same target with every tensor on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Sample:
    """One transformed image (3, H, W) float32, normalised, with its target."""

    image: Tensor
    target: Target


@dataclass(frozen=True)
class Batch:
    """Images padded at the right and bottom to one canvas.

    images (B, 3, H, W) float32 · padding_mask (B, H, W) bool, True = padding · targets, one an image.
    """

    images: Tensor
    padding_mask: Tensor
    targets: list[Target]

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.padding_mask.to(device, non_blocking=True),
            [target.to(device) for target in self.targets],
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, which a DataLoader asks for before copies to a GPU."""
        return Batch(self.images.pin_memory(), self.padding_mask.pin_memory(), self.targets)


@dataclass
class Heatmap:
    """A prediction for every cell of the image that only training has, learned with a sigmoid focal loss.

    logits (B, S) of the cells · goal: makes of the targets what the logits should say, (B, S) in [0, 1] · weight: of
    the loss, which is divided by the number of cells with a goal above 0.
    """

    logits: Tensor
    goal: Callable[[list[Target]], Tensor]
    weight: float = 1.0


@dataclass
class Predictions:
    """What a detector returns: the matching queries of every decoder layer, first to last.

    logits (L, B, Q, C), C = K, or K + 1 with no-object last · boxes (L, B, Q, 4) cxcywh in [0, 1] of the valid area ·
    masks: lazy view or None · groups: further predictions with losses of their own (``"encoder"``, ``"denoising"``,
    ``"one_to_many"``, ``"group1"``) · normaliser: the losses are divided by the number of boxes times this · heatmaps:
    dense predictions with losses of their own, by name (``"salience"``).
    """

    logits: Tensor
    boxes: Tensor
    masks: Any = None
    groups: dict[str, QueryGroup] = field(default_factory=dict)
    normaliser: float = 1.0
    heatmaps: dict[str, Heatmap] = field(default_factory=dict)


@dataclass
class QueryGroup(Predictions):
    """Predictions that only training has, and how they find their objects.

    pairs: (image, query, target) index vectors of one length when the assignment is fixed (denoising; ``target`` counts
    through the objects of the batch), None when it is matched · repeat: matched with every object given so many times
    (one-to-many). Both take the objects as they are, without label augmentation · class_agnostic: every object is of
    class 0 · ignored (B, Q) bool: queries without a loss, or None.
    """

    pairs: tuple[Tensor, Tensor, Tensor] | None = None
    repeat: int = 1
    class_agnostic: bool = False
    ignored: Tensor | None = None


@dataclass(kw_only=True)
class Detections:
    """Objects found in one image, best first.

    boxes float32 (N, 4) xyxy pixels of the upright original, clipped to it · scores float32 (N,), descending ·
    labels int64 (N,), 0..K-1 · categories in label order · image_size (height, width) · masks bool (N, H, W) or None ·
    image_id and path where known.
    """

    boxes: np.ndarray[Any, np.dtype[np.float32]]
    scores: np.ndarray[Any, np.dtype[np.float32]]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    categories: Categories
    image_size: tuple[int, int]
    masks: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    image_id: int | None = None
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def category_ids(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(N,) the data set's own class ids."""
        return np.asarray(self.categories.ids, dtype=np.int64)[self.labels]

    @property
    def names(self) -> list[str]:
        """(N,) class names."""
        return [str(self.categories[label].name) for label in self.labels]

    def keep(self, index: Any) -> Detections:
        """The detections that ``index`` selects (mask, slice or positions), in that order."""
        masks = None if self.masks is None else self.masks[index]
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index], masks=masks)

    def to_coco(self, image_id: int | None = None) -> list[dict[str, Any]]:
        """COCO results rows: image_id, category_id (original id), bbox [x, y, w, h] in pixels, score.

        Raises:
            ValueError: neither the detections nor the call say which image this is.
        """
        if image_id is None:
            image_id = self.image_id
        if image_id is None:
            raise ValueError("to_coco needs an image id: pass image_id=…, since these detections carry none")
        rows = []
        for box, score, category_id in zip(self.boxes, self.scores, self.category_ids, strict=True):
            x1, y1, x2, y2 = (float(value) for value in box)
            rows.append(
                {
                    "image_id": image_id,
                    "category_id": int(category_id),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(score),
                }
            )
        return rows

    def to_supervision(self) -> Any:
        """The same as ``supervision.Detections`` (class_id = label; names in ``data["class_name"]``).

        Raises:
            ImportError: the package ``supervision`` is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            mask=self.masks,
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.asarray(self.names)},
        )

    def draw(self, image: Image.Image | np.ndarray[Any, Any] | str | Path | None = None) -> Image.Image:
        """The image with boxes, names and scores drawn on it; by default the file the detections came from."""
        from detrkit.inference.drawing import draw_detections

        return draw_detections(self, image)


def pad_images(images: Sequence[Tensor], size_divisor: int = 1) -> tuple[Tensor, Tensor]:
    """Images (3, H_i, W_i) zero-padded at the right and bottom to one canvas.

    Returns images (B, 3, H, W) and padding mask (B, H, W), True = padding; H and W are the batch maximum, rounded up
    to a multiple of ``size_divisor`` (DETR: 1, so the exact maximum).
    """
    height = max(image.shape[-2] for image in images)
    width = max(image.shape[-1] for image in images)
    height = -(-height // size_divisor) * size_divisor
    width = -(-width // size_divisor) * size_divisor
    canvas = images[0].new_zeros((len(images), 3, height, width))
    mask = torch.ones((len(images), height, width), dtype=torch.bool)
    for index, image in enumerate(images):
        h, w = image.shape[-2:]
        canvas[index, :, :h, :w] = image
        mask[index, :h, :w] = False
    return canvas, mask
