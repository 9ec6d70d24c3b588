"""Images and annotations: formats, data sets, transforms, samplers, loaders."""

from __future__ import annotations

from detrkit.data.dataset import DetectionDataset
from detrkit.data.images import image_size, read_image
from detrkit.data.load import load_dataset
from detrkit.data.loader import build_loader, collate
from detrkit.data.records import ImageRecord
from detrkit.data.samplers import AspectRatioBatchSampler
from detrkit.data.transforms import EvalTransform, TrainTransform, resize_shape

__all__ = [
    "AspectRatioBatchSampler",
    "DetectionDataset",
    "EvalTransform",
    "ImageRecord",
    "TrainTransform",
    "build_loader",
    "collate",
    "image_size",
    "load_dataset",
    "read_image",
    "resize_shape",
]
