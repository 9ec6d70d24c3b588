"""The nouns every room shares: categories, objects, batches, predictions, detections."""

from __future__ import annotations

from detrkit.structures.batch import Batch, Sample, pad_images
from detrkit.structures.categories import FREQUENCIES, NEGATIVES, NOT_EXHAUSTIVE, Categories, Category
from detrkit.structures.detections import Detections
from detrkit.structures.objects import Objects, Target
from detrkit.structures.predictions import Heatmap, Predictions, QueryGroup

__all__ = [
    "FREQUENCIES",
    "NEGATIVES",
    "NOT_EXHAUSTIVE",
    "Batch",
    "Categories",
    "Category",
    "Detections",
    "Heatmap",
    "Objects",
    "Predictions",
    "QueryGroup",
    "Sample",
    "Target",
    "pad_images",
]
