"""Test-time augmentation: the objects of an image and of its mirror image, made one set.

Objects of one class in both that overlap by an IoU of at least 0.55 are one object: its box is the mean of both,
weighted by their scores, its score their mean, its mask that of the surer one. An object of one view alone has half its
score (weighted boxes fusion, Solovyev et al. 2021, with one box of a view in a cluster).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import box_iou

from detrkit.structures import Detections, Masks

__all__ = ["fused", "mirror_image", "mirrored"]

_SAME_OBJECT = 0.55  # IoU, as published


def mirror_image(picture: Image.Image) -> Image.Image:
    """The picture with left and right exchanged."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def mirrored(found: Detections) -> Detections:
    """Detections of a mirror image in pixels of the image, or the other way round."""
    x1, y1, x2, y2 = found.boxes.T
    width = np.float32(found.image_size[1])
    boxes = np.stack((width - x2, y1, width - x1, y2), axis=1)
    return replace(found, boxes=boxes, masks=None if found.masks is None else found.masks.mirrored())


def fused(first: Detections, second: Detections) -> Detections:
    """One set of objects from two views of an image, best first; the fields of the image are those of the first."""
    one, other = _pairs(first, second)
    boxes = np.concatenate((first.boxes, second.boxes)).astype(np.float64)
    scores = np.concatenate((first.scores, second.scores)).astype(np.float64)
    labels = np.concatenate((first.labels, second.labels))
    a, b = one, other + len(first)
    weight = scores[[a, b]] / np.maximum(scores[[a, b]].sum(0), 1e-12)
    merged = weight[0][:, None] * boxes[a] + weight[1][:, None] * boxes[b]
    keep = np.where(scores[a] >= scores[b], a, b)  # the surer one stands for both
    means = scores[[a, b]].mean(0)
    scores = scores / 2
    boxes[keep], scores[keep] = merged, means
    left = np.setdiff1d(np.arange(len(scores)), np.where(keep == a, b, a))
    order = left[np.argsort(-scores[left], kind="stable")]
    masks = None
    if first.masks is not None and second.masks is not None:
        masks = Masks.joined(first.masks, second.masks)[order]
    return replace(
        first,
        boxes=boxes[order].astype(np.float32),
        scores=scores[order].astype(np.float32),
        labels=labels[order],
        masks=masks,
    )


def _pairs(first: Detections, second: Detections) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions in both of the same objects: the surest of the first takes the nearest of the second that is left."""
    overlap = box_iou(torch.from_numpy(first.boxes), torch.from_numpy(second.boxes)).numpy()
    overlap[first.labels[:, None] != second.labels] = 0
    pairs = []
    for position in np.argsort(-first.scores, kind="stable"):
        if not overlap.shape[1]:
            break
        nearest = int(overlap[position].argmax())
        if overlap[position, nearest] >= _SAME_OBJECT:
            pairs.append((int(position), nearest))
            overlap[:, nearest] = 0
    found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]
