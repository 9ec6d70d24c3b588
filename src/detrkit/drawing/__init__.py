"""Pictures of labels and predictions: boxes, masks, panoptic and semantic maps, in one palette. Uses only Pillow.

Modules are imported on first use: predictions need no annotations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.on_use import import_on_use

if TYPE_CHECKING:
    from detrkit.drawing.labels import draw_labels
    from detrkit.drawing.marks import draw_detections, upright_picture
    from detrkit.drawing.overlays import draw_panoptic, draw_semantic
    from detrkit.drawing.palette import class_color

__getattr__ = import_on_use(
    __name__,
    {
        "labels": ["draw_labels"],
        "marks": ["draw_detections", "upright_picture"],
        "overlays": ["draw_panoptic", "draw_semantic"],
        "palette": ["class_color"],
    },
)
__all__ = ["class_color", "draw_detections", "draw_labels", "draw_panoptic", "draw_semantic", "upright_picture"]
