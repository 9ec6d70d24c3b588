"""Checks of masks: values, sizes, agreement with boxes and with the lists of segments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import hotcoco.mask
import numpy as np
from numpy.typing import NDArray

from detrkit.data.clean_rows import is_crowd, row_problem
from detrkit.data.coco_json import Row
from detrkit.data.findings import Finding, finding, row_name
from detrkit.data.map_files import MapFile, stated_size
from detrkit.data.outline_signs import MASK_FRAME, outline_signs
from detrkit.data.packed_masks import Polygons, pack, size_problem, unpack
from detrkit.data.rasterise import rle_of
from detrkit.data.records import WAY_ON, Table
from detrkit.errors import DataError
from detrkit.structures.segment_maps import Shapes, segment_shapes

__all__ = ["MASK_CHECKS", "MASK_VALUES", "crosses_itself", "mask_findings"]

MASK_VALUES = "mask values"
MASK_CHECKS = frozenset({MASK_VALUES, MASK_FRAME})
"""The checks of masks that boxes do not need."""

# Masks of fewer pixels are often slips of the mouse.
_TINY = 5
# Pixels by which a box may differ from its mask, and polygons extend beyond the image, as rounding can cause.
_TOLERANCE = 2.0
# More vertices are compared with one another in parts.
_EDGES_AT_ONCE = 512


@dataclass
class _Faults:
    """One line per mask, by fault."""

    malformed: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    tiny: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    off_box: list[str] = field(default_factory=list)
    crossing: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    inner: list[str] = field(default_factory=list)


def mask_findings(split: str, table: Table, *, quick: bool = False) -> Iterator[Finding]:
    """The findings about the masks of a split; none for boxes alone.

    quick: check how masks are written and draw none of them.
    """
    problems = [str(image["problem"]) for image in table.images if "problem" in image and not table.label_files]
    if problems or any("map" in image for image in table.images):
        yield finding("error", "mask files", split, problems, "images that cannot be used for their masks")
        if not quick:
            yield from _map_findings(split, table)
        return
    if not table.counts.outlines:
        return
    missing = [row_name(row) for row in table.annotations if not row.get("segmentation")]
    message = f"annotations without segmentation: boxes use them, training of masks stops; {WAY_ON.format('rows')}"
    yield finding("warning", "missing masks", split, missing, message)
    faults = _Faults()
    sizes = table.sizes
    for row in (row for row in table.annotations if row.get("segmentation")):
        _examine(row, sizes.get(row["image_id"], (None, None)), faults, quick)
    message = "segmentations that are malformed: tasks with masks refuse them, 'det' does not read them"
    yield finding("error", MASK_VALUES, split, faults.malformed, message)
    yield from outline_signs(split, table)
    if quick:
        return
    yield finding("warning", "empty masks", split, faults.empty, "masks without a pixel in the image: dropped")
    yield finding("warning", "tiny masks", split, faults.tiny, f"masks of fewer than {_TINY} pixels")
    yield finding("warning", "masks beyond border", split, faults.beyond, "polygons that extend beyond the image: cut")
    message = "boxes that do not fit their masks; tasks with masks use the box of the mask"
    yield finding("warning", "masks and boxes", split, faults.off_box, message)
    yield finding("warning", "crossing outlines", split, faults.crossing, "polygons that cross themselves")
    message = "polygons with parts of less than three points, which have no area: left out"
    yield finding("info", "points and lines", split, faults.lines, message)
    message = "masks with a polygon inside another of theirs: COCO joins them, so a hole is filled; RLE has holes"
    yield finding("warning", "filled holes", split, faults.inner, message)
    if any(row.get("isthing", 1) == 0 for row in table.categories):
        overlapping = list(_overlaps(table, sizes))
        message = "images whose segments overlap: in panoptic maps the later one has the pixels"
        yield finding("warning", "overlapping masks", split, overlapping, message)


def _examine(row: Row, size: tuple[int | None, int | None], faults: _Faults, quick: bool) -> None:
    name = row_name(row)
    width, height = size
    try:
        packed = pack(row["segmentation"])
    except DataError as error:
        faults.malformed.append(f"{name}: segmentation {error}")
        return
    if not width or not height:
        return
    problem = size_problem(packed, width, height)
    if problem:
        faults.malformed.append(f"{name}: segmentation {problem}")
    if problem or quick:
        return
    content = unpack(packed)
    assert isinstance(content, list | dict)
    rle = rle_of(content, (width, height))
    area = int(hotcoco.mask.area(rle))
    if not area:
        faults.empty.append(name)
        return
    if area < _TINY:
        faults.tiny.append(f"{name}: {area} pixels")
    if row_problem(row) is None:
        drawn, annotated = _corners(hotcoco.mask.toBbox(rle)), _corners(np.asarray(row["bbox"], dtype=np.float64))
        annotated = np.clip(annotated, 0, [width, height, width, height])
        if np.abs(drawn - annotated).max() > _TOLERANCE:
            faults.off_box.append(f"{name}: box {row['bbox']}, mask {hotcoco.mask.toBbox(rle).tolist()}")
    if isinstance(content, list):
        vertices = np.concatenate(content)
        if (vertices < -_TOLERANCE).any() or (vertices > np.add([width, height], _TOLERANCE)).any():
            faults.beyond.append(name)
        if any(crosses_itself(part) for part in content):
            faults.crossing.append(name)
        if isinstance(row["segmentation"], list | tuple) and len(content) < len(row["segmentation"]):
            faults.lines.append(name)
        if _has_inner_part(content, (width, height)):
            faults.inner.append(name)


def _has_inner_part(parts: Polygons, size: tuple[int, int]) -> bool:
    """Whether a part of a mask lies within its other parts, as holes do that were written as if they were parts."""
    rles = [rle_of([part], size) for part in parts]
    areas = [int(hotcoco.mask.area(rle)) for rle in rles]
    for rle, area in zip(rles, areas, strict=True):
        larger = [other for other, its in zip(rles, areas, strict=True) if its > area]
        if area and any(
            hotcoco.mask.area(hotcoco.mask.merge([rle, other], intersect=True)) == area for other in larger
        ):
            return True
    return False


def _corners(bbox: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([bbox[:2], bbox[:2] + bbox[2:]])


def crosses_itself(polygon: NDArray[np.float64]) -> bool:
    """Whether two edges of a polygon (V, 2) cross, other than in a common vertex."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    for first in range(0, len(start), _EDGES_AT_ONCE):
        a, b = start[first : first + _EDGES_AT_ONCE, None], end[first : first + _EDGES_AT_ONCE, None]
        across = (_side(a, b, start[None]) * _side(a, b, end[None]) < 0) & (
            _side(start[None], end[None], a) * _side(start[None], end[None], b) < 0
        )
        if across.any():
            return True
    return False


def _side(a: NDArray[np.float64], b: NDArray[np.float64], point: NDArray[np.float64]) -> NDArray[np.float64]:
    """On which side of the line from a to b a point is: the sign of the cross product."""
    ab, ap = b - a, point - a
    cross: NDArray[np.float64] = np.sign(ab[..., 0] * ap[..., 1] - ab[..., 1] * ap[..., 0])
    return cross


def _overlaps(table: Table, sizes: dict[int, tuple[int | None, int | None]]) -> Iterator[str]:
    """Images of which individual segments share pixels."""
    of_image = defaultdict(list)
    for row in table.annotations:
        if row.get("segmentation") and not is_crowd(row):
            of_image[row["image_id"]].append(row)
    names = {image["id"]: image["file_name"] for image in table.images}
    for image_id, rows in of_image.items():
        width, height = sizes.get(image_id, (None, None))
        if not width or not height:
            continue
        rles = []
        for row in rows:
            try:
                packed = pack(row["segmentation"])
            except DataError:
                continue
            content = unpack(packed)
            if isinstance(content, list | dict) and size_problem(packed, width, height) is None:
                rles.append(rle_of(content, (width, height)))
        if len(rles) > 1:
            shared = sum(int(hotcoco.mask.area(rle)) for rle in rles) - int(hotcoco.mask.area(hotcoco.mask.merge(rles)))
            if shared:
                yield f"{names[image_id]}: {shared} pixels"


def _map_findings(split: str, table: Table) -> Iterator[Finding]:
    """Reads every map file and compares it with the list of segments."""
    rows = defaultdict(list)
    for row in table.annotations:
        rows[row["image_id"]].append(row)
    images = [image for image in table.images if "map" in image]
    broken, tiny, off_box, off_area = [], [], [], []
    with ThreadPoolExecutor() as pool:
        for image, shapes in zip(images, pool.map(_shapes, images), strict=True):
            if isinstance(shapes, DataError):
                broken.append(str(shapes))
                continue
            places = {number: index for index, number in enumerate(shapes.ids.tolist())}
            for row in rows[image["id"]]:
                index = places[row["value"] + 1]
                area, box = int(shapes.areas[index]), shapes.boxes[index].tolist()
                if area < _TINY:
                    tiny.append(f"{row_name(row)}: {area} pixels")
                if row.get("area") is not None and row["area"] != area:
                    off_area.append(f"{row_name(row)}: {row['area']} listed, {area} in the map")
                if row_problem(row) is None:
                    distance = _corners(np.asarray(row["bbox"], np.float64)) - _corners(np.asarray(box, np.float64))
                    if np.abs(distance).max() > _TOLERANCE:
                        off_box.append(f"{row_name(row)}: {row['bbox']} listed, {box} in the map")
    yield finding("error", "segment maps", split, broken, "PNG files that cannot be used")
    yield finding("warning", "tiny masks", split, tiny, f"segments of fewer than {_TINY} pixels")
    yield finding("warning", "masks and boxes", split, off_box, "listed boxes that do not fit the segments")
    yield finding("warning", "masks and areas", split, off_area, "listed areas that are not those of the segments")


def _shapes(image: Row) -> Shapes | DataError:
    """Where the segments of an image lie, with 1 added to their values, since 0 may be one."""
    file: MapFile = image["map"]
    try:
        return segment_shapes(file.read(stated_size(image)) + 1)
    except DataError as error:
        return error
