"""Detections as plain values and as text: dictionaries, tables, CSV, YOLO label files, one line in words."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detrkit.structures.detections import Detections

__all__ = ["COLUMNS", "as_csv", "as_dict", "as_rows", "as_yolo", "in_words"]

COLUMNS = ("file", "name", "score", "x1", "y1", "x2", "y2", "label", "category_id")
"""Columns of a table of detections: boxes in pixels of the upright image; the file is empty where it is not known."""


def as_dict(found: Detections) -> dict[str, Any]:
    """The attributes as JSON knows them; masks as COCO run lengths."""
    return {
        "path": None if found.path is None else str(found.path),
        "image_id": found.image_id,
        "image_size": [int(side) for side in found.image_size],
        "boxes": found.boxes.tolist(),
        "scores": found.scores.tolist(),
        "labels": found.labels.tolist(),
        "category_ids": found.category_ids.tolist(),
        "names": found.names,
        **({} if found.masks is None else {"masks": found.masks.to_coco()}),
    }


def as_rows(found: Detections) -> list[tuple[str | float | int, ...]]:
    """One row of :data:`COLUMNS` for each detection."""
    file = "" if found.path is None else str(found.path)
    return [
        (file, name, score, *box, label, category_id)
        for name, score, box, label, category_id in zip(
            found.names,
            found.scores.tolist(),
            found.boxes.tolist(),
            found.labels.tolist(),
            found.category_ids.tolist(),
            strict=True,
        )
    ]


def as_csv(found: Detections) -> str:
    """A header and one line for each detection."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in as_rows(found))
    return text.getvalue()


def as_yolo(found: Detections, *, scores: bool) -> str:
    """One line for each detection: label, centre x, centre y, width, height in [0, 1]; with ``scores`` the score."""
    height, width = found.image_size
    lines = []
    for (x1, y1, x2, y2), score, label in zip(
        found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
    ):
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        values += [score] if scores else []
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]) + "\n")
    return "".join(lines)


def in_words(found: Detections) -> str:
    """``photo.jpg 640x480: 12 objects (RBC 9, WBC 2, Platelets 1)``, classes in label order."""
    counts = Counter(found.labels.tolist())
    listed = ", ".join(f"{found.categories[label].name} {counts[label]}" for label in sorted(counts))
    height, width = found.image_size
    where = f"{width}x{height}" if found.path is None else f"{found.path} {width}x{height}"
    return f"{where}: {len(found)} object{'s' * (len(found) != 1)} ({listed or 'none'})"
