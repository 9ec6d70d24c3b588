"""Detections in one image, the result of a prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from detrkit.structures.categories import Categories
from detrkit.structures.detection_arrays import as_bitmaps, as_boxes, as_labels, as_scores
from detrkit.structures.detection_texts import COLUMNS, as_csv, as_dict, as_rows, as_yolo, in_words
from detrkit.structures.run_lengths import Masks, RunLengths

if TYPE_CHECKING:
    import pandas
    import supervision
    from PIL import Image

__all__ = ["Detection", "Detections", "ResultRow", "result_rows"]

Index = NDArray[np.bool_] | NDArray[np.int64] | Sequence[int] | Sequence[bool] | slice
"""Several detections: a mask (N,), positions, or a slice."""


class ResultRow(TypedDict):
    """One row of a COCO results list: ``bbox`` is [x, y, width, height] in pixels."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float
    segmentation: NotRequired[RunLengths]


@dataclass(kw_only=True, eq=False)
class Detections:
    """Detections in one image, best first: a sequence of :class:`Detection`.

    ``found[0]`` is the best one and ``for one in found`` goes through all; ``found[found.scores > 0.8]``,
    ``found[:3]`` and ``found[[0, 2]]`` are ``Detections`` again. Two are equal where all their values are.

    Attributes:
        boxes: float32 (N, 4) xyxy in pixels of the upright original, clipped to the image.
        scores: float32 (N,), descending.
        labels: int64 (N,), 0..K-1.
        categories: classes in label order; their ids are written to files.
        image_size: (height, width) of the upright original.
        masks: masks of the objects as run lengths, an array (N, H, W) to numpy; None: boxes only.
        image_id: id of the image, or None.
        path: file of the image, or None.

    Lists, tensors and arrays of other precisions become these arrays, bitmaps (N, H, W) masks.

    Raises:
        ValueError: arrays of other shapes or of different lengths, or labels that the categories do not have.
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
        self.boxes, self.scores = as_boxes(self.boxes), as_scores(self.scores)
        self.labels = as_labels(self.labels, len(self.categories))
        masks: object = self.masks  # an array, too
        if masks is not None and not isinstance(masks, Masks):
            self.masks = as_bitmaps(masks, self.image_size)
        lengths = {"boxes": len(self.boxes), "scores": len(self.scores), "labels": len(self.labels)}
        lengths |= {} if self.masks is None else {"masks": len(self.masks)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"detections of different lengths: {lengths}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        return as_dict(self) == as_dict(other) and self.categories == other.categories

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[position] for position in range(len(self)))

    @overload
    def __getitem__(self, index: int | np.integer) -> Detection: ...

    @overload
    def __getitem__(self, index: Index) -> Detections: ...

    def __getitem__(self, index: int | np.integer | Index) -> Detections:
        if isinstance(index, slice):
            return self.keep(index)
        chosen = np.asarray(index)
        if chosen.ndim == 0:
            if not np.issubdtype(chosen.dtype, np.integer):
                raise TypeError(f"detections are chosen by a position, several, a mask or a slice, not {index!r}")
            if not -len(self) <= chosen < len(self):
                raise IndexError(f"there is no detection {int(chosen)}: there are {len(self)}")
            position = int(chosen) % len(self)
            return Detection(**vars(self) | _arrays(self, slice(position, position + 1)))
        if chosen.ndim > 1:
            raise IndexError(f"detections are chosen by positions or a mask (N,), got an array {chosen.shape}")
        return self.keep(chosen if chosen.size else chosen.astype(np.int64))

    @property
    def category_ids(self) -> NDArray[np.int64]:
        """(N,) class ids of the data set."""
        return np.asarray(self.categories.ids, dtype=np.int64)[self.labels]

    @property
    def names(self) -> list[str]:
        """(N,) class names."""
        return [str(self.categories[label].name) for label in self.labels]

    def keep(self, index: Index) -> Detections:
        """The detections that ``index`` selects (mask, slice or positions), in that order."""
        return Detections(**vars(self) | _arrays(self, index))

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
        return replace(self.keep(mapped >= 0), labels=mapped[mapped >= 0], categories=categories)

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

    def to_dict(self) -> dict[str, Any]:
        """The attributes as lists, numbers and texts, as JSON knows them; masks as COCO run lengths."""
        return as_dict(self)

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each detection: file, name, score, x1, y1, x2, y2 in pixels, label, category_id.

        Raises:
            ImportError: the package ``pandas`` is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe needs the package pandas: pip install pandas") from error
        return pandas.DataFrame(as_rows(self), columns=list(COLUMNS))

    def to_csv(self, path: str | Path | None = None) -> str:
        """The columns of :meth:`to_dataframe` as CSV with a header; written to ``path`` where one is given.

        Raises:
            RunError: the file cannot be written.
        """
        return _written(as_csv(self), path)

    def to_yolo(self, path: str | Path | None = None, *, scores: bool = False) -> str:
        """The lines of a YOLO label file: label, centre, width and height in [0, 1] of the image; masks are left out.

        Args:
            path: the ``.txt`` file to write; None: the text is only returned.
            scores: end every line with its score.

        Raises:
            RunError: the file cannot be written.
        """
        return _written(as_yolo(self, scores=scores), path)

    def summary(self) -> str:
        """What was found in one line: ``photo.jpg 640x480: 12 objects (RBC 9, WBC 2, Platelets 1)``."""
        return in_words(self)

    def crops(
        self, image: Image.Image | NDArray[np.uint8] | str | Path | None = None, *, margin: float = 0.0
    ) -> list[Image.Image]:
        """The part of the image in every box, at least one pixel large.

        Args:
            image: the upright image; default: the file that the detections come from.
            margin: width of the border around a box that is cut out too, as a part of the box's own sides.

        Raises:
            ValueError: no image is given and the detections have no path, the image has another size, or ``margin`` is
                negative.
            DataError: the image cannot be read.
        """
        from detrkit.drawing import upright_picture

        if not 0 <= margin < math.inf:
            raise ValueError(f"margin is a part of the sides of a box, 0 or more, got {margin}")
        picture = upright_picture(self, image)
        corners = []
        for x1, y1, x2, y2 in self.boxes.tolist():
            across, down = margin * (x2 - x1), margin * (y2 - y1)
            left, top = max(0, math.floor(x1 - across)), max(0, math.floor(y1 - down))
            right, bottom = min(picture.width, math.ceil(x2 + across)), min(picture.height, math.ceil(y2 + down))
            left, top = min(left, picture.width - 1), min(top, picture.height - 1)
            corners.append((left, top, max(right, left + 1), max(bottom, top + 1)))
        return [picture.crop(corner) for corner in corners]

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

    def save(
        self,
        path: str | Path,
        image: Image.Image | NDArray[np.uint8] | str | Path | None = None,
        *,
        labels: Literal["auto", "all", "none"] = "auto",
    ) -> Path:
        """Write the picture of :meth:`draw`; its ending chooses PNG or JPEG. Returns the path.

        Raises:
            ValueError: another ending, or as :meth:`draw` raises it.
            RunError: the file cannot be written.
        """
        from detrkit.files import write_picture

        target = Path(path)
        kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
        if target.suffix.lower() not in kinds:
            raise ValueError(f"{target}: a picture is saved as .png or .jpg")
        write_picture(target, self.draw(image, labels=labels), format=kinds[target.suffix.lower()])
        return target

    def show(self, image: Image.Image | NDArray[np.uint8] | str | Path | None = None) -> None:
        """Show the picture of :meth:`draw` in the viewer of the system."""
        self.draw(image).show()


class Detection(Detections):
    """One detection: ``Detections`` of length 1, whose values are also there one by one."""

    @property
    def box(self) -> NDArray[np.float32]:
        """float32 (4,) xyxy in pixels of the upright original."""
        return self.boxes[0]

    @property
    def score(self) -> float:
        """From 0 to 1."""
        return float(self.scores[0])

    @property
    def label(self) -> int:
        """0..K-1."""
        return int(self.labels[0])

    @property
    def category_id(self) -> int:
        """The id of its class in the data set."""
        return int(self.category_ids[0])

    @property
    def name(self) -> str:
        """The name of its class."""
        return self.names[0]

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """bool (H, W), or None for boxes only."""
        return None if self.masks is None else self.masks[0]


def _arrays(found: Detections, index: Index) -> dict[str, Any]:
    """The fields that differ from detection to detection."""
    masks = None if found.masks is None else found.masks[index]
    return {
        "boxes": found.boxes[index],
        "scores": found.scores[index],
        "labels": found.labels[index],
        "masks": masks,
    }


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        from detrkit.files import write_bytes

        write_bytes(Path(path), text.encode())
    return text


def result_rows(found: Mapping[int, Detections]) -> list[ResultRow]:
    """COCO results rows of several images, by image id."""
    return [row for image_id in sorted(found) for row in found[image_id].to_coco(image_id)]
