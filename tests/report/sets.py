"""Simulated evaluations: ground truth and detections drawn at random, with known kinds of errors."""

from __future__ import annotations

from typing import Any

import numpy as np

Rows = list[dict[str, Any]]


def simulated(
    *, images: int = 20, classes: int = 3, seed: int = 0, crowds: bool = False, quality: float = 0.8
) -> tuple[dict[str, Any], Rows]:
    """COCO ground truth and results: some objects found, some loosely, some twice, some missed, some made up."""
    rng = np.random.default_rng(seed)
    annotations: Rows = []
    results: Rows = []
    for image in range(1, images + 1):
        for _ in range(int(rng.integers(0, 6))):
            box = [*rng.uniform(0, 80, 2), *rng.uniform(8, 40, 2)]
            label = int(rng.integers(classes))
            crowd = int(crowds and rng.random() < 0.15)
            annotations.append(_row(image, label, box, id=len(annotations) + 1, iscrowd=crowd, area=box[2] * box[3]))
            for _ in range(int(rng.choice([0, 1, 2], p=[(1 - quality) / 2, quality, (1 - quality) / 2]))):
                shift = rng.normal(0, rng.choice([1.0, 6.0]), 4)
                near = [*(np.array(box) + shift)[:2], *np.maximum(np.array(box) + shift, 1)[2:]]
                other = label if rng.random() < 0.85 else int(rng.integers(classes))
                results.append(_row(image, other, near, score=float(rng.beta(4, 2))))
        for _ in range(int(rng.integers(0, 4))):
            box = [*rng.uniform(0, 80, 2), *rng.uniform(8, 40, 2)]
            results.append(_row(image, int(rng.integers(classes)), box, score=float(rng.beta(2, 4))))
    truth = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 120, "height": 120} for n in range(1, images + 1)],
        "categories": [{"id": 10 * k + 10, "name": f"class {k}"} for k in range(classes)],
        "annotations": annotations,
    }
    return truth, results


def _row(image: int, label: int, box: list[float], **more: object) -> dict[str, Any]:
    return {"image_id": image, "category_id": 10 * label + 10, "bbox": [float(value) for value in box], **more}
