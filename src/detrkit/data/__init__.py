"""Images and annotations: formats, data sets, transforms, samplers, loaders.

Modules are imported on first use: reading annotations needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detrkit.on_use import import_on_use

if TYPE_CHECKING:
    from detrkit.data.dataset import DetectionDataset, load_dataset
    from detrkit.data.images import image_size, read_image
    from detrkit.data.loader import build_loader, collate
    from detrkit.data.records import ImageRecord
    from detrkit.data.samplers import AspectRatioBatchSampler
    from detrkit.data.sizes import resize_shape
    from detrkit.data.transforms import EvalTransform, TrainTransform

__getattr__ = import_on_use(
    __name__,
    {
        "dataset": ["DetectionDataset", "load_dataset"],
        "images": ["image_size", "read_image"],
        "loader": ["build_loader", "collate"],
        "records": ["ImageRecord"],
        "samplers": ["AspectRatioBatchSampler"],
        "sizes": ["resize_shape"],
        "transforms": ["EvalTransform", "TrainTransform"],
    },
)
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
