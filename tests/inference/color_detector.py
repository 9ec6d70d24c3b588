"""A detector without training: class k is the bright rectangle in colour channel k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detrkit.models import Architecture, Detector, DetectorConfig
from detrkit.structures import Categories, Category, Predictions, Target

CATEGORIES = Categories([Category(3, "red"), Category(5, "green"), Category(9, "blue")])


class ColorDetector(Detector):
    """Predicts the bounding box of the pixels above 0.5 in every channel; the score is their mean brightness."""

    def __init__(self, *, categories: Categories | None = CATEGORIES, **overrides: Any) -> None:
        settings: dict[str, Any] = {
            "num_classes": 3,
            "num_queries": 4,
            "classification": "focal",
            "top_k": 5,
            "image_mean": (0.0, 0.0, 0.0),
            "image_std": (1.0, 1.0, 1.0),
            "eval_short_side": 64,
            "eval_max_side": 200,
            **overrides,
        }
        super().__init__(config=DetectorConfig.from_flat(Architecture, settings))
        self.name = "color"
        self.categories = categories
        self.shift = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(0.5)
        self.calls: list[tuple[int, ...]] = []

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        assert not self.training
        self.calls.append(tuple(images.shape))
        count, queries, classes = len(images), self.config.num_queries, self.config.num_classes
        logits = torch.full((count, queries, classes), -9.0, device=images.device)
        boxes = torch.full((count, queries, 4), 0.5, device=images.device)
        for index, image in enumerate(images):
            valid = ~padding_mask[index]
            height, width = int(valid.any(1).sum()), int(valid.any(0).sum())
            for channel in range(3):
                bright = (image[channel] > 0.5) & valid
                if bright.any():
                    rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
                    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
                    center = torch.stack(((left + right) / 2 / width, (top + bottom) / 2 / height))
                    size = torch.stack(((right - left) / width, (bottom - top) / height))
                    boxes[index, channel] = torch.cat((center, size))
                    logits[index, channel, channel] = torch.logit(image[channel][bright].mean().clamp(0.01, 0.99))
        return Predictions(logits[None] + self.shift, boxes[None])


def picture(
    size: tuple[int, int], *objects: tuple[int, tuple[int, int, int, int]], brightness: int = 240
) -> Image.Image:
    """A black (width, height) image with bright rectangles (channel, xyxy)."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for channel, (x1, y1, x2, y2) in objects:
        pixels[y1:y2, x1:x2, channel] = brightness
    return Image.fromarray(pixels)


def coco_folder(root: Path, images: dict[str, Image.Image], boxes: list[tuple[str, int, list[float]]]) -> Path:
    """A COCO data set of PNG images, the same for ``train`` and ``val``; boxes: (file name, category id, xywh)."""
    names = list(images)
    data = {
        "images": [
            {"id": 10 * (index + 1), "file_name": name, "width": image.width, "height": image.height}
            for index, (name, image) in enumerate(images.items())
        ],
        "categories": CATEGORIES.to_json(),
        "annotations": [
            {
                "id": number,
                "image_id": 10 * (names.index(name) + 1),
                "category_id": category_id,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for number, (name, category_id, box) in enumerate(boxes, start=1)
        ],
    }
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        for name, image in images.items():
            image.save(root / "images" / split / name)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
    return root
