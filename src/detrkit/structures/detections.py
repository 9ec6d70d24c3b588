"""Detections in one image, the result of a prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from detrkit.structures.categories import Categories
from detrkit.structures.run_lengths import Masks, RunLengths

if TYPE_CHECKING:
    import supervision
    from PIL import Image

__all__ = ["Detections", "ResultRow", "result_rows"]


class ResultRow(TypedDict):
    """One row of a COCO results list: ``bbox`` is [x, y, width, height] in pixels."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float
    segmentation: NotRequired[RunLengths]


@dataclass(kw_only=True)
class Detections:
    """Detections in one image, best first.

    Attributes:
        boxes: float32 (N, 4) xyxy in pixels of the upright original, clipped to the image.
        scores: float32 (N,), descending.
        labels: int64 (N,), 0..K-1.
        categories: classes in label order; their ids are written to files.
        image_size: (height, width) of the upright original.
        masks: masks of the objects as run lengths, an array (N, H, W) to numpy; None: boxes only.
        image_id: id of the image, or None.
        path: file of the image, or None.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    categories: Categories
    image_size: tuple[int, int]
    masks: Masks | None = None
    image_id: int | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        given: object = self.masks
        if isinstance(given, np.ndarray):  # bitmaps (N, H, W)
            self.masks = Masks.of(given, self.image_size)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def category_ids(self) -> NDArray[np.int64]:
        """(N,) class ids of the data set."""
        return np.asarray(self.categories.ids, dtype=np.int64)[self.labels]

    @property
    def names(self) -> list[str]:
        """(N,) class names."""
        return [str(self.categories[label].name) for label in self.labels]

    def keep(self, index: NDArray[np.bool_] | NDArray[np.int64] | Sequence[int] | slice) -> Detections:
        """The detections that ``index`` selects (mask, slice or positions), in that order."""
        masks = None if self.masks is None else self.masks[index]
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index], masks=masks)

    def resized(self, image_size: tuple[int, int]) -> Detections:
        """The same detections in pixels of the image at another (height, width)."""
        (height, width), (then_height, then_width) = image_size, self.image_size
        scale = np.array([width / then_width, height / then_height] * 2)
        masks = None if self.masks is None else self.masks.resized(image_size)
        boxes = (self.boxes * scale).clip(0, [width, height, width, height]).astype(np.float32)
        return replace(self, boxes=boxes, image_size=image_size, masks=masks)

    def relabel(self, labels: Sequence[int | None], categories: Categories) -> Detections:
        """The same detections as classes of another set, in the same order.

        Args:
            labels: label in ``categories`` for each label of ``self.categories``; None leaves its detections out.
            categories: the other set.
        """
        mapped = np.array([-1 if label is None else label for label in labels], dtype=np.int64)[self.labels]
        return replace(self, labels=mapped, categories=categories).keep(mapped >= 0)

    def to_coco(self, image_id: int | None = None) -> list[ResultRow]:
        """COCO results rows: image_id, category_id (original id), bbox [x, y, w, h] in pixels, score.

        Raises:
            ValueError: neither the detections nor the call give an image id.
        """
        if image_id is None:
            image_id = self.image_id
        if image_id is None:
            raise ValueError("to_coco needs an image id: pass image_id=…, since these detections carry none")
        rows: list[ResultRow] = []
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
        if self.masks is not None:
            for row, segmentation in zip(rows, self.masks.to_coco(), strict=True):
                row["segmentation"] = segmentation
        return rows

    def to_supervision(self) -> supervision.Detections:
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
            mask=None if self.masks is None else np.asarray(self.masks),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.asarray(self.names)},
        )

    def draw(
        self,
        image: Image.Image | NDArray[np.uint8] | str | Path | None = None,
        *,
        labels: Literal["auto", "all", "none"] = "auto",
    ) -> Image.Image:
        """Draw boxes or masks, names and scores on an image; default: the file that the detections come from.

        ``labels``: "auto" leaves out names that would cover a crowded picture, "all" and "none" do as they say.
        """
        from detrkit.drawing import draw_detections

        return draw_detections(self, image, labels=labels)


def result_rows(found: Mapping[int, Detections]) -> list[ResultRow]:
    """COCO results rows of several images, by image id."""
    return [row for image_id in sorted(found) for row in found[image_id].to_coco(image_id)]
