"""Labels beside predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from detrkit.drawing import draw_detections, draw_labels, draw_panoptic, draw_semantic
from detrkit.report.charts.tiles import sheet
from detrkit.structures import Categories, Detections, PanopticMap, SemanticMap

if TYPE_CHECKING:
    from detrkit.data.records import ImageRecord

__all__ = ["Compared", "draw_comparisons"]

Compared = tuple[Image.Image, "ImageRecord", "Detections | PanopticMap | SemanticMap"]
"""An image, its labels, and what was found in it."""


def draw_comparisons(rows: Sequence[Compared], categories: Categories, *, threshold: float) -> Image.Image:
    """One sheet: every image twice, on the left with its labels, on the right with what was found.

    Args:
        rows: the images; they are as large as the files.
        categories: the classes of the labels.
        threshold: detections with a lower score are left out.
    """
    pictures: list[Image.Image] = []
    captions: list[str] = []
    for image, record, found in rows:
        name = record.file_name.rsplit("/", 1)[-1]
        pictures += [draw_labels(image, record, categories)]
        captions += [f"{name}: {int(record.segments.single.sum())} labelled"]
        if isinstance(found, Detections):
            shown = found.keep(found.scores >= np.float32(threshold))
            pictures.append(draw_detections(shown, image))
            captions.append(f"{len(shown)} found with a score of at least {threshold:.2f}")
        else:
            pictures.append(
                draw_panoptic(found, image) if isinstance(found, PanopticMap) else draw_semantic(found, image)
            )
            captions.append("found")
    return sheet(pictures, columns=4 if len(pictures) > 2 else 2, captions=captions)
