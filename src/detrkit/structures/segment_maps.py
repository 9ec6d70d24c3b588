"""Images cut into segments: panoptic maps (every pixel belongs to one segment) and semantic maps (to one class)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.errors import first_few
from detrkit.structures.categories import Categories
from detrkit.structures.detections import Detections
from detrkit.structures.run_lengths import Masks

__all__ = [
    "MAX_ID",
    "PanopticMap",
    "Segment",
    "SegmentRow",
    "SemanticMap",
    "Shapes",
    "id_mismatch",
    "ids_to_rgb",
    "no_class",
    "rgb_to_ids",
    "segment_shapes",
]

MAX_ID = 2**24 - 1
"""The largest segment id that the three bytes of a COCO panoptic PNG hold."""

LabelArray = NDArray[np.uint8] | NDArray[np.uint16]


class SegmentRow(TypedDict):
    """One row of ``segments_info``: ``bbox`` is [x, y, width, height] in pixels."""

    id: int
    category_id: int
    area: int
    bbox: list[int]
    iscrowd: int
    score: float


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map.

    Attributes:
        id: its value in the map, 1 .. 2^24 - 1.
        label: its class, 0 .. K-1.
        score: how certain the model is of it, in [0, 1].
    """

    id: int
    label: int
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class PanopticMap:
    """The segments of one image; no two overlap.

    Attributes:
        ids: int32 (H, W), the id of the segment of each pixel; 0 where there is none.
        segments: one for every id in the map.
        categories: the classes in label order.
        path: of the image, where known.

    Raises:
        ValueError: the map and the segments do not fit together; the message says how.
    """

    ids: NDArray[np.int32]
    segments: tuple[Segment, ...]
    categories: Categories
    path: Path | None = None

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids must be integers of shape (H, W), not {ids.dtype} of shape {ids.shape}")
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= MAX_ID:
            raise ValueError(f"ids must be between 0 and {MAX_ID}, but go from {ids.min()} to {ids.max()}")
        object.__setattr__(self, "ids", ids.astype(np.int32, copy=False))
        object.__setattr__(self, "segments", tuple(self.segments))
        listed = [segment.id for segment in self.segments]
        twice = sorted({number for number in listed if listed.count(number) > 1})
        if twice:
            raise ValueError(f"segment id {twice[0]} is used twice")
        for segment in self.segments:
            if not 0 <= segment.label < len(self.categories):
                raise ValueError(
                    f"segment {segment.id} has label {segment.label}, but there are {len(self.categories)} classes"
                )
        problem = id_mismatch(segment_shapes(self.ids).ids.tolist(), listed)
        if problem:
            raise ValueError(f"the map and its segments differ: {problem}")

    def segments_info(self) -> list[SegmentRow]:
        """The rows of a COCO panoptic annotation, in the order of the segments."""
        shapes = segment_shapes(self.ids)
        place = {number: index for index, number in enumerate(shapes.ids.tolist())}
        rows: list[SegmentRow] = []
        for segment in self.segments:
            index = place[segment.id]
            rows.append(
                {
                    "id": segment.id,
                    "category_id": self.categories[segment.label].id,
                    "area": int(shapes.areas[index]),
                    "bbox": shapes.boxes[index].tolist(),
                    "iscrowd": 0,
                    "score": float(segment.score),
                }
            )
        return rows

    def relabel(self, labels: Sequence[int | None], categories: Categories) -> PanopticMap:
        """The same segments as classes of another set.

        Args:
            labels: label in ``categories`` for each label of ``self.categories``; None leaves its segments out.
            categories: the other set.
        """
        kept = [(segment, labels[segment.label]) for segment in self.segments]
        segments = tuple(replace(segment, label=label) for segment, label in kept if label is not None)
        ids = self.ids
        if len(segments) < len(kept):
            ids = np.where(np.isin(ids, [segment.id for segment in segments]), ids, 0)
        return PanopticMap(ids, segments, categories, self.path)

    def things(self) -> Detections:
        """The things as detections with masks, highest score first; boxes are tight on the masks."""
        found = [segment for segment in self.segments if self.categories[segment.label].is_thing]
        found.sort(key=lambda segment: -segment.score)
        size = (self.ids.shape[0], self.ids.shape[1])
        # one mask at a time: all of them would not fit
        masks = Masks([runs for segment in found for runs in Masks.encode((self.ids == segment.id)[None])], size)
        return Detections(
            boxes=masks.boxes,
            scores=np.array([segment.score for segment in found], dtype=np.float32),
            labels=np.array([segment.label for segment in found], dtype=np.int64),
            categories=self.categories,
            image_size=size,
            masks=masks,
            path=self.path,
        )

    def draw(self, image: Image.Image | NDArray[np.uint8] | str | Path | None = None) -> Image.Image:
        """Draw the segments and a legend on an image; default: the file that the map comes from."""
        from detrkit.drawing import draw_panoptic

        return draw_panoptic(self, image)

    def to_image(self) -> Image.Image:
        """The map as a COCO panoptic picture: id = R + 256 G + 65536 B."""
        return Image.fromarray(ids_to_rgb(self.ids))

    def to_png(self, path: str | Path) -> None:
        """Writes that picture."""
        self.to_image().save(path, format="PNG")


@dataclass(frozen=True, eq=False)
class SemanticMap:
    """The class of every pixel of one image.

    Attributes:
        labels: uint8 or uint16 (H, W), 0 .. K-1; the largest value of the type (255 or 65535) where there is none.
        categories: the classes in label order.
        path: of the image, where known.

    Raises:
        ValueError: a label that is no class, or an array of another kind.
    """

    labels: LabelArray
    categories: Categories
    path: Path | None = None

    def __post_init__(self) -> None:
        labels = self.labels
        if labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"labels must be uint8 or uint16 of shape (H, W), not {labels.dtype} of {labels.shape}")
        classes = len(self.categories)
        if classes > self.none:
            raise ValueError(
                f"{classes} classes do not fit {labels.dtype}, whose value {self.none} stands for no class"
            )
        largest = int((labels + labels.dtype.type(1)).max(initial=0)) - 1  # no class becomes 0, by overflow
        if largest >= classes:
            raise ValueError(f"label {largest} is in the map, but there are {classes} classes")

    @property
    def none(self) -> int:
        """The value of pixels without a class."""
        return no_class(self.labels)

    def relabel(self, labels: Sequence[int | None], categories: Categories) -> SemanticMap:
        """The same map with the labels of another set of classes; arguments as :meth:`PanopticMap.relabel`."""
        small = len(categories) < 256
        none = 255 if small else 65535
        table = np.full(self.none + 1, none)
        for own, label in enumerate(labels):
            table[own] = none if label is None else label
        changed = table[self.labels]
        return SemanticMap(changed.astype(np.uint8) if small else changed.astype(np.uint16), categories, self.path)

    def draw(self, image: Image.Image | NDArray[np.uint8] | str | Path | None = None) -> Image.Image:
        """Draw the classes and a legend on an image; default: the file that the map comes from."""
        from detrkit.drawing import draw_semantic

        return draw_semantic(self, image)

    def to_image(self) -> Image.Image:
        """The labels as a picture of one channel, 8 or 16 bits."""
        return Image.fromarray(self.labels)

    def to_png(self, path: str | Path) -> None:
        """Writes that picture."""
        self.to_image().save(path, format="PNG")


class Shapes(NamedTuple):
    """Where segments lie.

    ids: (N,) ascending, without 0 · areas: (N,) in pixels · boxes: (N, 4) tight [x, y, width, height].
    """

    ids: NDArray[np.int64]
    areas: NDArray[np.int64]
    boxes: NDArray[np.int64]


def ids_to_rgb(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Ids (H, W) up to ``MAX_ID`` as the bytes (H, W, 3) of a COCO panoptic PNG."""
    wide = np.asarray(ids).astype("<u4")
    return np.ascontiguousarray(wide).view(np.uint8).reshape(*wide.shape, 4)[..., :3].copy()


def rgb_to_ids(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Bytes (H, W, 3) of a COCO panoptic PNG as ids (H, W)."""
    ids = rgb[..., 2].astype(np.int32)  # bytes would overflow
    for channel in (1, 0):
        ids <<= 8
        ids |= rgb[..., channel]
    return ids


def no_class(labels: LabelArray) -> int:
    """The value of a label map that stands for no class: the largest of its type."""
    return int(np.iinfo(labels.dtype).max)


def segment_shapes(ids: NDArray[np.integer]) -> Shapes:
    """Areas and boxes of all segments of a map (H, W)."""
    height, width = ids.shape
    if not ids.size:
        nothing = np.zeros(0, dtype=np.int64)
        return Shapes(nothing, nothing, nothing.reshape(0, 4))
    # Over runs of equal pixels in a row, of which there are far fewer than pixels.
    change = np.ones((height, width), dtype=bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=change[:, 1:])
    starts = np.flatnonzero(change)
    lengths = np.diff(starts, append=ids.size)
    values = ids.reshape(-1)[starts].astype(np.int64)
    order = np.argsort(values, kind="stable")
    values, starts, lengths = values[order], starts[order], lengths[order]
    first = np.flatnonzero(np.diff(values, prepend=-1))
    rows, columns = np.divmod(starts, width)
    left, right = np.minimum.reduceat(columns, first), np.maximum.reduceat(columns + lengths, first)
    top, bottom = np.minimum.reduceat(rows, first), np.maximum.reduceat(rows, first) + 1
    boxes = np.stack([left, top, right - left, bottom - top], axis=1)
    found, areas = values[first], np.add.reduceat(lengths, first)
    segments = found != 0
    return Shapes(found[segments], areas[segments], boxes[segments])


def id_mismatch(in_map: Iterable[int], listed: Iterable[int]) -> str | None:
    """What is wrong when the ids in a map are not those that are listed, or None."""
    in_map, listed = set(in_map), set(listed)
    unlisted, unseen = sorted(in_map - listed), sorted(listed - in_map)
    problems = [
        f"{_some(ids)} {verb}"
        for ids, verb in ((unlisted, "in the map but not listed"), (unseen, "listed but not in the map"))
        if ids
    ]
    return "; ".join(problems) or None


def _some(ids: list[int]) -> str:
    return f"segment {ids[0]} is" if len(ids) == 1 else f"segments {first_few(ids, 5)} are"
