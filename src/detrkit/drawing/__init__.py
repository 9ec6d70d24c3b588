"""Pictures of labels and predictions: boxes, masks, panoptic and semantic maps, in one palette. Uses only Pillow."""

from detrkit.drawing.labels import draw_labels
from detrkit.drawing.marks import draw_detections
from detrkit.drawing.overlays import draw_panoptic, draw_semantic
from detrkit.drawing.palette import class_color

__all__ = ["class_color", "draw_detections", "draw_labels", "draw_panoptic", "draw_semantic"]
