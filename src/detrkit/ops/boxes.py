"""Box arithmetic: conversions, IoU, generalised IoU, inverse sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cxcywh_to_xyxy", "generalized_iou", "inverse_sigmoid", "iou", "xyxy_to_cxcywh"]


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert boxes (…, 4) from centre and size to corners."""
    centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert boxes (…, 4) from corners to centre and size."""
    first, last = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((first + last) / 2, last - first), dim=-1)


def _overlap(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of xyxy boxes that broadcast against each other."""
    overlap = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    intersection = _area(overlap.clamp(min=0))
    areas = _area(first[..., 2:] - first[..., :2]) + _area(second[..., 2:] - second[..., :2])
    return intersection, areas - intersection


def _area(size: Tensor) -> Tensor:
    return size[..., 0] * size[..., 1]


def iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of xyxy boxes that broadcast against each other: (…, 4), (…, 4) -> (…); 0 where both are empty."""
    intersection, union = _overlap(first, second)
    return intersection / union.clamp(min=torch.finfo(first.dtype).tiny)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """GIoU of xyxy boxes that broadcast against each other: (…, 4), (…, 4) -> (…).

    The official code fails an assertion on degenerate boxes. Here they only give a low value: two empty boxes at the
    same point have GIoU 0 instead of NaN.
    """
    eps = torch.finfo(first.dtype).tiny
    intersection, union = _overlap(first, second)
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    enclosing = _area(hull)
    return intersection / union.clamp(min=eps) - (enclosing - union) / enclosing.clamp(min=eps)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x`` in [0, 1], with ``x`` and ``1 - x`` clamped to at least ``eps``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
