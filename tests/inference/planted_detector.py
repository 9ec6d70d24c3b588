"""A detector that knows the objects of its images: it finds them in masks at 1/4, as a perfect mask branch would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detrkit.models import Architecture, Detector, DetectorConfig
from detrkit.structures import Categories, Category, MaskView, Predictions, Target
from detrkit.structures.segment_maps import segment_shapes

CATEGORIES = Categories(
    [Category(3, "cell"), Category(4, None), Category(7, "rod"), Category(8, "sky", False), Category(9, "soil", False)]
)
CELL, UNNAMED, ROD, SKY, SOIL = range(5)


@dataclass(frozen=True)
class DenseView:
    """Masks that are there already: logits (B, N, h, w), the same in every layer."""

    logits: Tensor

    @property
    def factors(self) -> tuple[Tensor, ...]:
        return (self.logits,)

    def __getitem__(self, queries: slice) -> MaskView:
        return DenseView(self.logits[:, queries])

    def dense(self) -> Tensor:
        return self.logits

    def rows(self, layer: Tensor, image: Tensor, query: Tensor) -> Tensor:
        return self.logits[image, query]

    def of_image(self, image: int, layer: int, points: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Planted:
    """One segment of an image: its class, its mask (H, W) at any size of the image, and its class score.

    The predicted box is that of the mask ``boxed``, or of its own.
    """

    label: int
    mask: NDArray[np.bool_]
    score: float = 0.99
    boxed: NDArray[np.bool_] | None = None


class PlantedDetector(Detector):
    """Predicts what is planted; ``scenes`` has the segments of every image in the order in which they come.

    The mask of a cell at 1/4 has logit 20 where its centre lies in the segment, else -20.
    """

    def __init__(
        self,
        scenes: Sequence[Sequence[Planted]],
        *,
        task: str = "pan",
        categories: Categories = CATEGORIES,
        **overrides: Any,
    ) -> None:
        settings: dict[str, Any] = {
            "task": task,
            "num_classes": len(categories),
            "num_queries": max([1, *map(len, scenes)]),
            "classification": "focal",
            "top_k": 100,
            "image_mean": (0.0, 0.0, 0.0),
            "image_std": (1.0, 1.0, 1.0),
            "eval_short_side": 128,
            "eval_max_side": 1000,
            **overrides,
        }
        super().__init__(config=DetectorConfig.from_flat(Architecture, settings))
        self.name = "planted"
        self.categories = categories
        self.scenes = list(scenes)
        self.backbone = nn.Identity()

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        images = self.backbone(images)
        count, queries = len(images), self.config.architecture.num_queries
        size = (-(-images.shape[2] // 4), -(-images.shape[3] // 4))
        logits = torch.full((count, queries, len(self.categories)), -9.0)
        boxes = torch.full((count, queries, 4), 0.5)
        masks = torch.full((count, queries, *size), -20.0)
        for index in range(count):
            valid = ~padding_mask[index]
            height, width = int(valid.any(1).sum()), int(valid.any(0).sum())
            for query, planted in enumerate(self.scenes.pop(0)):
                logits[index, query, planted.label] = np.log(planted.score / (1 - planted.score))
                boxes[index, query] = torch.from_numpy(_box(planted.mask if planted.boxed is None else planted.boxed))
                rows = _nearest(size[0], images.shape[2], height, planted.mask.shape[0])
                columns = _nearest(size[1], images.shape[3], width, planted.mask.shape[1])
                inside = planted.mask[np.ix_(np.maximum(rows, 0), np.maximum(columns, 0))]
                inside = inside & (rows >= 0)[:, None] & (columns >= 0)
                masks[index, query][torch.from_numpy(inside)] = 20.0
        if self.config.architecture.classification == "softmax":  # no object of logit 0: the scores are the same
            logits = torch.cat((logits, torch.zeros(count, queries, 1)), dim=-1)
        return Predictions(logits[None], boxes[None], masks=DenseView(masks))


def _nearest(cells: int, canvas: int, valid: int, original: int) -> NDArray[np.int64]:
    """(cells,) the row or column of the original at the centre of each cell of the canvas; -1: in the padding."""
    centre = (np.arange(cells) + 0.5) * canvas / cells
    return np.where(centre < valid, np.floor(centre * original / valid), -1).astype(np.int64)


def _box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """cxcywh in [0, 1]."""
    shapes = segment_shapes(mask.astype(np.int32))
    x, y, width, height = shapes.boxes[0].tolist()
    of = np.array([mask.shape[1], mask.shape[0]] * 2)
    return (np.array([x + width / 2, y + height / 2, width, height]) / of).astype(np.float32)


def rectangle(size: tuple[int, int], x1: int, y1: int, x2: int, y2: int) -> NDArray[np.bool_]:
    """A mask (H, W)."""
    mask = np.zeros(size, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def scene(size: tuple[int, int] = (200, 200), unit: int = 8) -> list[Planted]:
    """Two cells, a rod, and sky above soil, which together cover the image; sides are multiples of ``unit``."""
    height, width = size

    def at(*sides: float) -> NDArray[np.bool_]:
        x1, y1, x2, y2 = (
            round(side * length / unit) * unit for side, length in zip(sides, (width, height) * 2, strict=True)
        )
        return rectangle(size, x1, y1, x2, y2)

    things = [(CELL, at(0.1, 0.1, 0.4, 0.4)), (CELL, at(0.5, 0.2, 0.9, 0.5)), (ROD, at(0.2, 0.6, 0.8, 0.9))]
    taken = np.any([mask for _, mask in things], axis=0)
    sky = at(0, 0, 1, 0.5)
    return [Planted(k, mask) for k, mask in [*things, (SKY, sky & ~taken), (SOIL, ~sky & ~taken)]]
