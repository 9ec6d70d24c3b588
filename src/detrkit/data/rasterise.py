"""Drawing packed masks: polygons, RLE and segment maps become pixels of a transformed image.

Polygons are moved and then drawn; RLE and segment maps take the nearest original pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import hotcoco.mask
import numpy as np
from numpy.typing import NDArray

from detrkit.data.geometry import Axis, Geometry
from detrkit.data.packed_masks import PackedMasks, Polygons, Rle, unpack

__all__ = ["draw_mask", "draw_masks", "moved_map", "replaced", "rle_of", "tight_boxes"]

Bitmap = NDArray[np.bool_]


def draw_masks(
    masks: PackedMasks, groups: NDArray[np.int64], geometry: Geometry, segment_map: NDArray[np.integer] | None = None
) -> Bitmap:
    """Draw masks (G, H, W) on a transformed image: mask g is the union of all masks of group g.

    Args:
        masks: (N,) of the image.
        groups: (N,) the group of each mask, 0..G-1.
        geometry: where the pixels of the transformed image lie in the original.
        segment_map: (h, w) values of the original's pixels, where masks are values of it.
    """
    count = int(groups.max()) + 1 if len(groups) else 0
    canvas: Bitmap = np.zeros((count, geometry.y.length, geometry.x.length), dtype=bool)
    group_of: dict[int, int] = {}
    for position, group in enumerate(groups.tolist()):
        content = unpack(masks.packed(position))
        if isinstance(content, list):
            _draw_polygons(canvas[group], content, geometry)
        elif isinstance(content, dict):
            _draw_rle(canvas[group], content, geometry)
        elif content is not None:
            group_of[content] = group
    if group_of:
        assert segment_map is not None, "masks that are values need the segment map of their image"
        _draw_values(canvas, group_of, moved_map(segment_map, geometry))
    canvas[:, geometry.y.sources() < 0] = False
    canvas[:, :, geometry.x.sources() < 0] = False
    return canvas


def draw_mask(
    masks: PackedMasks, position: int, geometry: Geometry, segment_map: NDArray[np.integer] | None = None
) -> Bitmap:
    """One mask (H, W); arguments as in :func:`draw_masks`."""
    mask: Bitmap = draw_masks(masks[position : position + 1], np.zeros(1, np.int64), geometry, segment_map)[0]
    return mask


def moved_map(values: NDArray[np.integer], geometry: Geometry) -> NDArray[np.int32]:
    """A map (h, w) of the original on the transformed image (H, W); -1 outside of the original."""
    rows, columns = geometry.y.sources(), geometry.x.sources()
    moved = values[np.ix_(rows, columns)].astype(np.int32)
    moved[rows < 0] = -1
    moved[:, columns < 0] = -1
    return moved


def replaced(values: NDArray[np.integer], table: Mapping[int, int], default: int) -> NDArray[np.int64]:
    """The map with each value replaced as the table says, and all others by the default."""
    if not table:
        return np.full(values.shape, default, dtype=np.int64)
    known, new = (np.array(column, dtype=np.int64) for column in zip(*sorted(table.items()), strict=True))
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[place] == values, new[place], default)


def rle_of(content: Polygons | Rle | None, size: tuple[int, int]) -> Rle:
    """Polygons or RLE as compressed RLE of the whole image; size: (width, height)."""
    return content if isinstance(content, dict) else _polygon_rle(content or [], size[1], size[0])


def tight_boxes(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Boxes (N, 4) xyxy around masks (N, H, W), to the far edge of the last pixel; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4))
    for axis, (low, high) in ((1, (0, 2)), (2, (1, 3))):
        used = np.asarray(masks.any(axis=axis))
        boxes[:, low] = used.argmax(axis=1)
        boxes[:, high] = used.shape[1] - used[:, ::-1].argmax(axis=1)
    empty = ~np.asarray(masks.any(axis=(1, 2)))
    boxes[empty] = 0
    return boxes


def _draw_polygons(canvas: Bitmap, polygons: Polygons, geometry: Geometry) -> None:
    moved = [
        np.stack([geometry.x.positions(part[:, 0]), geometry.y.positions(part[:, 1])], axis=1) for part in polygons
    ]
    rle = _polygon_rle(moved, *canvas.shape)
    left, top, width, height = map(int, hotcoco.mask.toBbox(rle))
    part = slice(top, top + height), slice(left, left + width)
    canvas[part] |= hotcoco.mask.decode(rle)[part] == 1


def _draw_values(canvas: Bitmap, group_of: Mapping[int, int], values: NDArray[np.int32]) -> None:
    from scipy import ndimage  # which most data do not need

    groups = replaced(values, {value: 1 + group for value, group in group_of.items()}, 0)
    for group, part in enumerate(ndimage.find_objects(groups, max_label=len(canvas))):
        if part is not None:
            canvas[group][part] |= groups[part] == 1 + group


def _draw_rle(canvas: Bitmap, rle: Rle, geometry: Geometry) -> None:
    left, top, width, height = hotcoco.mask.toBbox(rle)
    columns, rows = _moved_range(left, left + width, geometry.x), _moved_range(top, top + height, geometry.y)
    part = geometry.cropped((rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0]))
    canvas[slice(*rows), slice(*columns)] |= moved_map(hotcoco.mask.decode(rle), part) == 1


def _moved_range(low: float, high: float, axis: Axis) -> tuple[int, int]:
    """First and last + 1 of the pixels of an axis that show [low, high] of the original."""
    ends = axis.positions(np.array([low, high]))
    first = min(max(0, math.floor(ends.min())), axis.length)
    return first, max(first, min(axis.length, math.ceil(ends.max())))


def _polygon_rle(polygons: Polygons, height: int, width: int) -> Rle:
    if not polygons:
        empty: Rle = hotcoco.mask.encode(np.zeros((height, width), np.uint8, order="F"))
        return empty
    parts = hotcoco.mask.frPyObjects([part.ravel().tolist() for part in polygons], height, width)
    rle: Rle = hotcoco.mask.merge(parts)
    return rle
