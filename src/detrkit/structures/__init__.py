"""Types shared by all packages: categories, objects, batches, predictions, detections.

Each module is loaded on first use, since some do not need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.on_use import import_on_use

if TYPE_CHECKING:
    from detrkit.structures.batch import Batch, Sample, pad_images, pad_masks
    from detrkit.structures.categories import FREQUENCIES, NEGATIVES, NOT_EXHAUSTIVE, Categories, Category
    from detrkit.structures.detections import Detection, Detections
    from detrkit.structures.objects import OF_IMAGE, Objects, Target
    from detrkit.structures.predictions import Heatmap, MaskView, Predictions, QueryGroup
    from detrkit.structures.run_lengths import Masks
    from detrkit.structures.segment_maps import PanopticMap, Segment, SemanticMap
    from detrkit.structures.thresholds import Thresholds

__getattr__ = import_on_use(
    __name__,
    {
        "batch": ["Batch", "Sample", "pad_images", "pad_masks"],
        "categories": ["FREQUENCIES", "NEGATIVES", "NOT_EXHAUSTIVE", "Categories", "Category"],
        "detections": ["Detection", "Detections"],
        "objects": ["OF_IMAGE", "Objects", "Target"],
        "run_lengths": ["Masks"],
        "predictions": ["Heatmap", "MaskView", "Predictions", "QueryGroup"],
        "segment_maps": ["PanopticMap", "Segment", "SemanticMap"],
        "thresholds": ["Thresholds"],
    },
)
__all__ = [
    "FREQUENCIES",
    "NEGATIVES",
    "NOT_EXHAUSTIVE",
    "OF_IMAGE",
    "Batch",
    "Categories",
    "Category",
    "Detection",
    "Detections",
    "Heatmap",
    "MaskView",
    "Masks",
    "Objects",
    "PanopticMap",
    "Predictions",
    "QueryGroup",
    "Sample",
    "Segment",
    "SemanticMap",
    "Target",
    "Thresholds",
    "pad_images",
    "pad_masks",
]
