"""One configuration learns instances, classes of pixels and panoptic segments: only ``task`` changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from detrkit.inference.answers import Frame, answer
from detrkit.losses import build_criterion
from detrkit.metrics.coco import CocoMetric
from detrkit.metrics.panoptic import PanopticMetric
from detrkit.metrics.semantic import SemanticMetric
from detrkit.models import Detector
from detrkit.ops.boxes import xyxy_to_cxcywh
from detrkit.structures import Categories, Category, Detections, Masks, PanopticMap, SemanticMap, Target
from tests.small import small_model

SIDE, STEPS = 128, 300
CATEGORIES = Categories(
    [
        Category(1, "rectangle"),
        Category(2, "disc"),
        Category(3, "sky", is_thing=False),
        Category(4, "sea", is_thing=False),
    ]
)
RECTANGLE, DISC, SKY, SEA = range(4)
COLORS = torch.tensor([[1.5, -1.0, -1.0], [-1.0, 1.5, -1.0], [-0.5, 0.0, 1.5], [0.5, 0.5, -1.5]])
Segments = list[tuple[int, Tensor]]
"""(label, bool mask (H, W)) of segments that do not overlap."""


def scene(
    rectangles: Sequence[tuple[int, int, int, int]], discs: Sequence[tuple[int, int, int]], horizon: int
) -> Segments:
    """Rectangles (left, top, right, bottom) and discs (x, y, radius) on sky above a horizon and sea below."""
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    things = [(RECTANGLE, (x > a) & (x < c) & (y > b) & (y < d)) for a, b, c, d in rectangles]
    things += [(DISC, (x - a) ** 2 + (y - b) ** 2 < r**2) for a, b, r in discs]
    covered = torch.stack([mask for _, mask in things]).any(0)
    return [*things, (SKY, ~covered & (y < horizon)), (SEA, ~covered & (y >= horizon))]


SCENES = [
    scene([(12, 16, 52, 56)], [(92, 88, 24)], 64),
    scene([(70, 60, 118, 112)], [(36, 36, 22)], 80),
    scene([(20, 70, 60, 104)], [(90, 30, 20), (98, 96, 18)], 48),
    scene([(12, 8, 44, 60), (76, 12, 116, 40)], [(60, 94, 26)], 72),
]


def picture(segments: Segments) -> Tensor:
    """(3, H, W): every class has its colour."""
    image = torch.zeros(3, SIDE, SIDE)
    for label, mask in segments:
        image[:, mask] = COLORS[label][:, None]
    return image


def segments_of(task: str, segments: Segments) -> Segments:
    """What a task learns: things; one union per class; or both things and stuff."""
    if task == "inst":
        return [(label, mask) for label, mask in segments if CATEGORIES[label].is_thing]
    if task == "sem":
        labels = sorted({label for label, _ in segments})
        return [(k, torch.stack([mask for label, mask in segments if label == k]).any(0)) for k in labels]
    return segments


def target(task: str, segments: Segments) -> Target:
    labels = torch.tensor([label for label, _ in segments_of(task, segments)])
    masks = torch.stack([mask for _, mask in segments_of(task, segments)])
    boxes = []
    for mask in masks:
        rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    is_thing = torch.tensor([CATEGORIES[int(label)].is_thing for label in labels])
    return Target(
        labels=labels,
        boxes=xyxy_to_cxcywh(torch.tensor(boxes) / SIDE),
        masks=masks,
        is_thing=is_thing,
        size=(SIDE, SIDE),
    )


def trained(name: str, task: str, steps: int, **options: Any) -> Detector:
    """A tiny model after so many steps on the scenes."""
    settings = {"num_classes": 4, "num_queries": 20, "denoising_queries": 20, "mask_points": 1024, **options}
    model = small_model(name, task=task, **settings).train()
    images, targets = torch.stack([picture(segments) for segments in SCENES]), [target(task, s) for s in SCENES]
    criterion = build_criterion(model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(model(images, None, targets), criterion.prepare(targets)).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


# ----------------------------------------------------------------------------------------------------------- the scores


def mask_ap50(found: list[Detections]) -> float | None:
    rows, number = [], 0
    for image, segments in enumerate(SCENES, start=1):
        for label, mask in segments_of("inst", segments):
            number += 1
            area = int(mask.sum())
            (rle,) = Masks.of(mask[None].numpy(), (SIDE, SIDE)).to_coco()
            y, x = mask.nonzero().T
            box = [int(x.min()), int(y.min()), int(x.max() - x.min()) + 1, int(y.max() - y.min()) + 1]
            row = {"id": number, "image_id": image, "category_id": label + 1, "area": area, "bbox": box, "iscrowd": 0}
            rows.append({**row, "segmentation": rle})
    images = [{"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE} for number in range(1, 5)]
    categories = [row for row in CATEGORIES.to_json() if row.get("isthing", 1)]
    metric = CocoMetric({"images": images, "annotations": rows, "categories": categories}, iou_type="segm")
    for image, detections in enumerate(found, start=1):
        metric.update(image, detections)
    return metric.compute().metrics["AP50"]


def mean_iou(found: list[SemanticMap]) -> float | None:
    truth = []
    for segments in SCENES:
        labels = np.zeros((SIDE, SIDE), np.uint8)
        for label, mask in segments:
            labels[mask.numpy()] = label
        truth.append(SemanticMap(labels, CATEGORIES))
    metric = SemanticMetric(CATEGORIES, lambda image: truth[image])
    for image, labels in enumerate(found):
        metric.update(image, labels)
    return metric.compute().metrics["mIoU"]


def panoptic_quality(found: list[PanopticMap]) -> float | None:
    ids: dict[str, NDArray[np.int32]] = {}
    rows = []
    for image, segments in enumerate(SCENES):
        name = f"{image}.png"
        ids[name], infos = np.zeros((SIDE, SIDE), np.int32), []
        for number, (label, mask) in enumerate(segments, start=1):
            ids[name][mask.numpy()] = number
            infos.append({"id": number, "category_id": label + 1, "area": int(mask.sum()), "iscrowd": 0})
        rows.append({"image_id": image, "file_name": name, "segments_info": infos})
    images = [{"id": image, "file_name": f"{image}.jpg", "width": SIDE, "height": SIDE} for image in range(len(SCENES))]
    categories = [{"isthing": 1, **row} for row in CATEGORIES.to_json()]
    content = {"images": images, "annotations": rows, "categories": categories}
    metric = PanopticMetric(content, images=lambda name: ids[name])
    for image, segments in enumerate(found):
        metric.update(image, segments)
    return metric.compute().metrics["PQ"]


SCORES: dict[str, Any] = {"inst": mask_ap50, "sem": mean_iou, "pan": panoptic_quality}


def score(model: Detector, task: str) -> float:
    """The score of a task on the training images."""
    size = (SIDE, SIDE)
    frames = [Frame(size, size, size)] * len(SCENES)
    with torch.no_grad():
        out = model(torch.stack([picture(segments) for segments in SCENES]))
    found = answer(out, frames, config=model.config, categories=CATEGORIES, task=task)
    value = SCORES[task](found)
    assert value is not None
    return float(value)


DAPE = {"one_to_many_queries": 20}


@pytest.mark.slow
def test_dino_learns_instances_in_sixty_steps() -> None:
    assert score(trained("dino_lite0", "inst", 60), "inst") > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("task", SCORES)
def test_mask_dape_learns_four_images(task: str) -> None:
    """Above 0.95 in the score of its task; a panoptic model in those of all tasks."""
    model = trained("mask_dape_lite0", task, STEPS, **DAPE)
    scores = {answered: score(model, answered) for answered in (SCORES if task == "pan" else (task,))}
    assert min(scores.values()) > 0.95, scores


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("dino_lite0", {}), ("relation_detr_lite0", DAPE)])
def test_other_detectors_learn_four_images(name: str, options: dict[str, Any]) -> None:
    # 0.948 was seen of Relation-DETR, which learns with fewer queries one to many than it has: no claim of 0.95 here
    assert score(trained(name, "pan", STEPS, **options), "pan") > 0.9
