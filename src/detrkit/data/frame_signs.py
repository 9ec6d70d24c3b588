"""Whether boxes were written for these pictures: not as fractions, as corners, or for pictures of another size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrkit.data.clean_rows import row_problem
from detrkit.data.findings import Finding, finding
from detrkit.data.frames import BORDER_TOLERANCE
from detrkit.data.records import Table

__all__ = ["frame_signs"]

_SAMPLE = 20_000  # boxes that are looked at
_LEAST = 20  # boxes
_SOME = 0.05  # share of the boxes that do not fit into their images as they stand, and …
_FITTING = 0.98  # … share that does when they are read otherwise
_MANY = 0.2  # the same without another reading
_OUTSIDE = 0.9
_CORNER = 0.6  # of the sides of the images: boxes that all end before it were drawn on smaller pictures
_IMAGES = 20
_FEW_IMAGES = 5
_CROWDED = 3  # boxes of an image: so many fit by chance in no other reading
_PERCENT, _LARGE = (95.0, 100.0), 200  # boxes that reach so far, and no farther, on images of more than so many pixels

Numbers = NDArray[np.float64]
_CORNERS, _SIZES = "[x1, y1, x2, y2]", "[x, y, width, height]"


class _Columns(NamedTuple):
    """Boxes (N, 4) as COCO has them and as they are written, and (width, height) and id of their images."""

    boxes: Numbers
    written: Numbers
    sizes: Numbers
    images: NDArray[np.int64]
    kind: str


def frame_signs(split: str, table: Table) -> Iterator[Finding]:
    """An error where boxes fit their images only when they are read in another way.

    A warning where they seem to be drawn on larger or smaller pictures: boxes of hidden parts, or of one corner of a
    scene, look alike.
    """
    columns = _columns(table)
    known = len(columns.boxes) >= _LEAST
    read, drawn = (_reading(columns), _other_size(columns)) if known else ("", "")
    message = "boxes that were not written for these pictures as the format has them"
    yield finding("error", "box frame", split, [read] if read else [], message)
    yield finding(
        "warning", "box reach", split, [drawn] if drawn and not read else [], "boxes do not fit their pictures"
    )


def _reading(columns: _Columns) -> str:
    """How boxes have to be read to fit their images; empty where they do, or nothing helps."""
    boxes, sizes, images = columns.boxes, columns.sizes, columns.images
    if columns.kind != "middle" and (share := _of_unit(columns.written)):
        whose = "their numbers" if share >= _FITTING else f"the numbers of {share:.0%} of them"
        return f"{whose} lie between 0 and 1: multiply them by width and height of the image"
    if columns.kind != "middle" and _are_percent(columns):
        return "their numbers end at 100, as percent of the image do: multiply them by a hundredth of width and height"
    unfit = ~_fits(boxes, sizes)
    beyond = unfit.mean()
    troubled = np.isin(images, images[unfit])  # sound images of a set that was put together say nothing
    count = len(np.unique(images[troubled]))
    crowded = count >= _FEW_IMAGES and troubled.sum() >= _CROWDED * count
    for what, read, corners in _readings(columns) if beyond >= _SOME else ():
        fits = _fits(read, sizes)
        if fits.mean() >= _FITTING:
            return f"{beyond:.0%} of them leave their images; all fit when read as {what}"
        if corners and crowded and fits[troubled].mean() >= _FITTING:
            return f"{beyond:.0%} of them leave their images; all of these {count} images fit when read as {what}"
    return ""


def _readings(columns: _Columns) -> Iterator[tuple[str, Numbers, bool]]:
    """Other readings of boxes: in words, as COCO's boxes, and whether they take corners for sizes or the reverse."""
    a, b, c, d = columns.written.T
    sizes, corners = np.stack([a, b, c, d], axis=1), np.stack([a, b, c - a, d - b], axis=1)
    middle = np.stack([a - c / 2, b - d / 2, c, d], axis=1)
    if columns.kind == "corners":
        yield f"{_SIZES} instead of {_CORNERS}", sizes, True
        yield f"the middle and size of the box instead of {_CORNERS}", middle, True
        yield f"[y1, x1, y2, x2] instead of {_CORNERS}", corners[:, [1, 0, 3, 2]], False
        yield f"[x2, y2, x1, y1] instead of {_CORNERS}", np.stack([c, d, a - c, b - d], axis=1), True
    elif columns.kind == "middle":
        yield f"{_CORNERS} instead of the middle and size of the box", corners, True
        yield "the corner of the box instead of its middle", sizes, False
    else:
        yield f"{_CORNERS} instead of {_SIZES}", corners, True
        yield f"[y1, x1, y2, x2] instead of {_SIZES}", corners[:, [1, 0, 3, 2]], True
        yield f"[y, x, height, width] instead of {_SIZES}", sizes[:, [1, 0, 3, 2]], False
        yield "the middle of the box instead of its corner", middle, False


def _of_unit(written: Numbers) -> float:
    """The share of boxes whose numbers all lie between 0 and 1; 0 where they are few."""
    inside = ((written >= 0) & (written <= 1)).all(axis=1) & (written > 0).any(axis=1)
    return float(inside.mean()) if inside.sum() >= _LEAST else 0.0


def _are_percent(columns: _Columns) -> bool:
    """Whether boxes end where percent do, on images that are larger."""
    reach = (columns.boxes[:, :2] + columns.boxes[:, 2:]).max(axis=0)
    few = len(np.unique(columns.images)) < _FEW_IMAGES or columns.sizes.min() < _LARGE
    return not few and bool(((reach >= _PERCENT[0]) & (reach <= _PERCENT[1] + 0.5)).all())


def _other_size(columns: _Columns) -> str:
    """What speaks for pictures of another size."""
    sized = (columns.boxes[:, 2:] > 0).all(axis=1)
    boxes, sizes = columns.boxes[sized], columns.sizes[sized]
    if not len(boxes):
        return ""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    beyond, reach = 1.0 - _fits(boxes, sizes).mean(), high / sizes
    outside = ((low >= sizes) | (high <= 0)).any(axis=1).mean()
    if beyond >= _MANY and outside < _OUTSIDE:  # all of them outside is another finding
        far = float(np.quantile(reach.max(axis=1), _FITTING))
        return f"{beyond:.0%} of them leave their images, up to {far:.1f} times as far: drawn on larger pictures?"
    width, height = reach.max(axis=0).tolist()
    if len(np.unique(columns.images[sized])) >= _IMAGES and 0 < max(width, height) < _CORNER:
        return (
            f"none reaches beyond {width:.0%} of the width and {height:.0%} of the height: drawn on smaller pictures?"
        )
    return ""


def _fits(boxes: Numbers, sizes: Numbers) -> NDArray[np.bool_]:
    """(N,) whether boxes have a size and lie in their images."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    slack = BORDER_TOLERANCE + 0.02 * sizes
    inside = (low >= -slack) & (high <= sizes + slack) & (high > low)
    return np.asarray(inside.all(axis=1), dtype=np.bool_)


def _columns(table: Table) -> _Columns:
    """The boxes that are four numbers, also of no positive size, on images of known size."""
    known = table.sizes
    step = max(1, len(table.annotations) // _SAMPLE)
    boxes, sizes, images = [], [], []
    for number, row in enumerate(table.annotations):
        width, height = known.get(row["image_id"], (None, None))
        if number % step == 0 and width and height and row_problem(row, signed=True) is None:
            boxes.append(row["bbox"])
            sizes.append((width, height))
            images.append(row["image_id"])
    found = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    kind = _KINDS.get(table.label_files[0].suffix.lower(), "sizes") if table.label_files else "sizes"
    x, y, w, h = found.T
    written = {
        "corners": [x + 1, y + 1, x + w, y + h],  # VOC counts pixels from 1
        "middle": [x + w / 2, y + h / 2, w, h],
        "sizes": [x, y, w, h],
    }[kind]
    return _Columns(
        boxes=found,
        written=np.stack(written, axis=1),
        sizes=np.array(sizes, dtype=np.float64).reshape(-1, 2),
        images=np.array(images, dtype=np.int64),
        kind=kind,
    )


_KINDS = {".xml": "corners", ".txt": "middle"}
"""How the label files of VOC and YOLO write boxes; all else has sizes, as COCO has."""
