"""Records as ground truth for scores: COCO annotations, panoptic segments, classes of pixels.

The pixels of segments and classes are made when a score asks for an image, so that they are never all in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hotcoco.mask
import numpy as np
from numpy.typing import NDArray

from detrkit.data.coco_json import Row
from detrkit.data.geometry import Geometry
from detrkit.data.packed_masks import Rle, mask_rle, text_rle, unpack
from detrkit.data.rasterise import draw_mask, replaced, rle_of
from detrkit.data.records import ImageRecord
from detrkit.data.segments import Segments
from detrkit.structures import NEGATIVES, NOT_EXHAUSTIVE, Categories, SemanticMap

__all__ = ["annotation_rows", "image_row", "panoptic_truth", "segment_ids", "semantic_map", "shared_pixels"]


def image_row(record: ImageRecord, category_ids: Sequence[int]) -> Row:
    """The record as an image of a COCO file, with LVIS's lists where it has them."""
    image = {"id": record.image_id, "file_name": record.file_name, "width": record.width, "height": record.height}
    lists = {NEGATIVES: record.negatives, NOT_EXHAUSTIVE: record.not_exhaustive}
    known = {key: [category_ids[label] for label in labels] for key, labels in lists.items() if labels is not None}
    return {**image, **known}


def annotation_rows(record: ImageRecord, category_ids: Sequence[int]) -> Iterator[Row]:
    """The segments as annotations of a COCO file without ids; with segmentations where the record has masks."""
    segments = record.segments
    columns = (segments.boxes, segments.labels, segments.areas, segments.crowd)
    rles = iter([None] * len(segments)) if segments.masks is None else segment_rles(record)
    for box, label, area, crowd, rle in zip(*(column.tolist() for column in columns), rles, strict=True):
        row = {"image_id": record.image_id, "category_id": category_ids[label], "bbox": box}
        row |= {"area": area, "iscrowd": int(crowd)}
        yield row if rle is None else {**row, "segmentation": rle}


def segment_rles(record: ImageRecord) -> Iterator[Rle]:
    """The mask of every segment as compressed RLE of the whole image, ready for JSON."""
    masks = record.segments.masks
    assert masks is not None
    values = record.segment_map()
    for position in range(len(masks)):
        content = unpack(masks.packed(position))
        if isinstance(content, int):
            assert values is not None
            yield mask_rle(values == content)
        else:
            yield text_rle(rle_of(content, (record.width, record.height)))


def shared_pixels(record: ImageRecord) -> int:
    """How many pixels belong to a second segment, or to more; none where a map file has the segments."""
    if record.map_file is not None or record.segments.masks is None:
        return 0
    rles = list(segment_rles(record))
    if len(rles) < 2:
        return 0
    return sum(int(hotcoco.mask.area(rle)) for rle in rles) - int(hotcoco.mask.area(hotcoco.mask.merge(rles)))


def segment_ids(record: ImageRecord) -> NDArray[np.int32]:
    """The segment (H, W) of each pixel: 1 + its position in the record; 0 where there is none.

    Stuff of one class is one segment, the first. Where segments overlap, the later one counts, and an object before a
    crowd.
    """
    order = np.argsort(~record.segments.crowd, kind="stable")
    return _painted(record, order, _merged_ids(record.segments), 0).astype(np.int32)


def semantic_map(record: ImageRecord, categories: Categories) -> SemanticMap:
    """The class of each pixel; where segments of several classes overlap, the later one counts."""
    order, labels = np.arange(len(record.segments)), record.segments.labels
    if len(categories) <= np.iinfo(np.uint8).max:
        painted = _painted(record, order, labels, np.iinfo(np.uint8).max).astype(np.uint8)
        return SemanticMap(painted, categories, path=record.path)
    wide = _painted(record, order, labels, np.iinfo(np.uint16).max).astype(np.uint16)
    return SemanticMap(wide, categories, path=record.path)


def panoptic_truth(
    records: Sequence[ImageRecord], categories: Categories
) -> tuple[Row, Callable[[str], NDArray[np.int32]]]:
    """COCO panoptic content, and what gives the segment ids of a file that it names."""
    stems = [Path(record.file_name).stem for record in records]
    if len(set(stems)) < len(stems):
        stems = [str(record.image_id) for record in records]
    annotations = {f"{stem}.png": record for stem, record in zip(stems, records, strict=True)}
    rows = []
    for name, record in annotations.items():
        rows.append(
            {"image_id": record.image_id, "file_name": name, "segments_info": _segments_info(record, categories)}
        )
    content = {
        "images": [image_row(record, categories.ids) for record in records],
        "annotations": rows,
        "categories": [{**row, "isthing": row.get("isthing", 1)} for row in categories.to_json()],
    }
    return content, lambda name: segment_ids(annotations[name])


def _segments_info(record: ImageRecord, categories: Categories) -> list[Row]:
    """The rows of the segments of which something is seen; a map file is not read for that."""
    segments = record.segments
    if record.map_file is None:
        areas = np.bincount(segment_ids(record).ravel(), minlength=len(segments) + 1)
    else:
        areas = np.bincount(_merged_ids(segments), weights=segments.areas, minlength=len(segments) + 1)
    return [
        {
            "id": number,
            "category_id": categories[segments.labels[number - 1]].id,
            "iscrowd": int(segments.crowd[number - 1]),
            "area": int(areas[number]),
        }
        for number in np.flatnonzero(areas).tolist()
        if number
    ]


def _merged_ids(segments: Segments) -> NDArray[np.int64]:
    """(N,) the id of each segment in a panoptic map."""
    ids = np.arange(1, len(segments) + 1)
    stuff = np.flatnonzero(~segments.things & ~segments.crowd)
    _, first, place = np.unique(segments.labels[stuff], return_index=True, return_inverse=True)
    ids[stuff] = ids[stuff][first][place]
    return ids


def _painted(
    record: ImageRecord, order: NDArray[np.int64], colors: NDArray[np.int64], background: int
) -> NDArray[np.int64]:
    """The image (H, W) with each segment in its colour, in this order, one mask at a time."""
    masks, values = record.segments.masks, record.segment_map()
    canvas = np.full((record.height, record.width), background, dtype=np.int64)
    if masks is None or not len(masks):
        return canvas
    if values is not None:
        contents = [unpack(masks.packed(position)) for position in range(len(masks))]
        numbers = [content for content in contents if isinstance(content, int)]
        return replaced(values, dict(zip(numbers, colors.tolist(), strict=True)), background)
    geometry = Geometry.whole((record.width, record.height))
    for position in order.tolist():
        canvas[draw_mask(masks, position, geometry)] = colors[position]
    return canvas
