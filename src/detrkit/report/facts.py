"""Facts about the data of a run, which it records in ``facts.json``: what rules for the next run are told by."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrkit.data.annotated_images import AnnotatedImages
from detrkit.data.records import ImageRecord
from detrkit.errors import DataError
from detrkit.report.edge_fit import EdgeFit, edge_fit

__all__ = ["NAME", "Facts", "SplitFacts", "data_facts", "images_digest", "read_facts"]

NAME = "facts.json"
"""The file in the run folder."""

TINY = 8.0
"""Pixels: objects smaller than one cell of the finest map of most detectors (stride 8)."""

_NAMED = 10  # pairs of equal images that are named


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """One split.

    Attributes:
        images: number of images.
        objects: number of objects, without crowds.
        classes: objects of each class.
        most: objects of the fullest image.
        size: median of sqrt(width x height) of the objects, in pixels of the network's input; None without objects.
        tiny: share of the objects smaller than 8 pixels there.
        offset: (dx, dy) pixels by which moving all boxes would make them fit edges in the images best; None where
            moving them would not, or it was not measured.
        anywhere: whether edges in the images follow the boxes no more than chance would make them.
    """

    images: int
    objects: int
    classes: dict[str, int]
    most: int
    size: float | None = None
    tiny: float = 0.0
    offset: tuple[float, float] | None = None
    anywhere: bool = False


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run has recorded beside its log.

    Attributes:
        train: the training images.
        val: the validation images; None where there are none.
        short_side: shorter side of the network's input in pixels.
        max_side: its largest longer side.
        shared_images: number of validation images that are also training images, byte by byte.
        shared_names: some of them, (training file, validation file).
        unreadable: ids of validation images that could not be read.
        parameters: of the model.
        queries: of the model.
        device: where the run was trained.
        train_score: the deciding number of the last weights on some training images; None where it was not measured.
        train_images: how many.
        short_steps: optimizer steps below which a run like this usually fails.
        task: of the model.
        val_digest: of the ids and names of the validation images, which the kept detections refer to.
    """

    train: SplitFacts
    val: SplitFacts | None = None
    short_side: int | None = None
    max_side: int | None = None
    shared_images: int = 0
    shared_names: tuple[tuple[str, str], ...] = ()
    unreadable: tuple[int, ...] = ()
    parameters: int | None = None
    queries: int | None = None
    device: str = ""
    train_score: float | None = None
    train_images: int = 0
    short_steps: int | None = None
    task: str = "det"
    val_digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From :meth:`to_json`; keys that this version does not know are left out."""
        known = {key: value for key, value in values.items() if key in cls.__dataclass_fields__}
        for name in ("train", "val"):
            if known.get(name) is not None:
                known[name] = SplitFacts(**known[name])
                offset = known[name].offset
                known[name] = replace(known[name], offset=None if offset is None else tuple(offset))
        known["shared_names"] = tuple((a, b) for a, b in known.get("shared_names", ()))
        known["unreadable"] = tuple(known.get("unreadable", ()))
        return cls(**known)


def read_facts(folder: Path) -> Facts | None:
    """The facts of a run; None where it has recorded none."""
    path = folder / NAME
    try:
        return Facts.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def data_facts(
    train: AnnotatedImages,
    val: AnnotatedImages | None,
    *,
    short_side: int | None = None,
    max_side: int | None = None,
    look: int = 0,
    **more: Any,
) -> Facts:
    """The facts of the data of a run.

    Images are read where two files may be equal, and some to see whether boxes lie on edges.

    Args:
        train: the training images.
        val: the validation images.
        short_side: shorter side of the network's input.
        max_side: its largest longer side.
        look: images of each split that are read for the edges.
        more: further fields of :class:`Facts`.
    """
    sides = None if short_side is None or max_side is None else (short_side, max_side)
    shared = [] if val is None else _equal_files(_paths(train), _paths(val))
    return Facts(
        train=_split(train, sides, look),
        val=None if val is None else _split(val, sides, look),
        short_side=short_side,
        max_side=max_side,
        val_digest="" if val is None else images_digest(val),
        shared_images=len({second for _, second in shared}),
        shared_names=tuple((first.name, second.name) for first, second in shared[:_NAMED]),
        **more,
    )


def images_digest(data: AnnotatedImages) -> str:
    """A short text that changes with the ids and names of the images."""
    lines = sorted({f"{record.image_id} {record.file_name}" for record in data.records})
    return hashlib.sha1("\n".join(lines).encode(), usedforsecurity=False).hexdigest()[:16]


def _split(data: AnnotatedImages, sides: tuple[int, int] | None, look: int) -> SplitFacts:
    records = data.unique_records()
    counts = np.zeros(len(data.categories), dtype=np.int64)
    for record in records:
        counts += np.bincount(record.labels, minlength=len(counts))
    sizes = np.concatenate([np.zeros(0), *(_sizes(record, sides) for record in records)]) if sides else np.zeros(0)
    fit = _edges(data, look)
    return SplitFacts(
        images=len(records),
        objects=int(counts.sum()),
        classes={str(category.name): int(count) for category, count in zip(data.categories, counts, strict=True)},
        most=max((len(record.labels) for record in records), default=0),
        size=round(float(np.median(sizes)), 2) if len(sizes) else None,
        tiny=round(float((sizes < TINY).mean()), 4) if len(sizes) else 0.0,
        offset=(fit.dx, fit.dy) if fit.is_off else None,
        anywhere=fit.is_anywhere,
    )


def _edges(data: AnnotatedImages, look: int) -> EdgeFit:
    """How boxes fit the edges of their images, by a look at some of them."""
    with_boxes = [position for position, record in enumerate(data.records) if len(record.labels)]
    chosen = with_boxes[:: max(1, len(with_boxes) // look)][:look] if look else []

    def pictures() -> Iterator[tuple[Image.Image, NDArray[np.float64]]]:
        for position in chosen:
            try:
                yield data.read_image(position), data.records[position].boxes
            except DataError:  # it is counted where it matters
                continue

    return edge_fit(pictures())


def _sizes(record: ImageRecord, sides: tuple[int, int]) -> NDArray[np.float64]:
    """Sizes of the objects of an image in pixels of the network's input."""
    shorter, longer = sorted((record.width, record.height))
    scale = min(sides[0] / shorter, sides[1] / longer)
    boxes = record.segments.boxes[record.segments.single]
    return np.sqrt(np.maximum(boxes[:, 2] * boxes[:, 3], 0.0)) * scale


def _paths(data: AnnotatedImages) -> list[Path]:
    return list(dict.fromkeys(record.path for record in data.records))


def _equal_files(first: Sequence[Path], second: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of files with equal content; only files of equal size are read."""
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in first:
        sizes[_bytes(path)].append(path)
    pairs = []
    digests: dict[Path, str] = {}
    for path in second:
        for other in sizes.get(_bytes(path), ()) if _bytes(path) else ():
            for one in (path, other):
                if one not in digests:
                    digests[one] = _digest(one)
            if digests[path] == digests[other] != "":
                pairs.append((other, path))
    return pairs


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _digest(path: Path) -> str:
    try:
        return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
    except OSError:
        return ""
