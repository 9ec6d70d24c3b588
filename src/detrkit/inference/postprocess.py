"""From predictions to the objects of an image: scores and classes, top-k, NMS variants."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detrkit.losses.classes import ClassLoss
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Categories, Category
from detrkit.weights.official.class_names import COCO_CATEGORIES, COCO_PANOPTIC_CATEGORIES

__all__ = ["Selected", "default_categories", "select", "without_duplicates"]

# Minimum number of candidates before NMS with sigmoid classification (pre_nms of DE-CondDETR).
PRE_NMS_TOP_K = 2000


class Selected(NamedTuple):
    """Objects of one image.

    scores (N,) · labels (N,) · boxes (N, 4) xyxy in [0, 1] of the valid area · queries (N,): index of each query.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    queries: Tensor


def select(
    logits: Tensor,
    boxes: Tensor,
    *,
    classes: ClassLoss,
    top_k: int | None,
    nms: float | None = None,
    nms_decay: float | None = None,
    class_mask: Tensor | None = None,
    wanted: Tensor | None = None,
) -> Selected:
    """Select the objects of one image.

    Args:
        logits: (Q, C).
        boxes: (Q, 4) cxcywh in [0, 1] of the valid area.
        classes: the meaning of the logits. With exclusive classes a query gives one object, otherwise one or several
            of different classes.
        top_k: the maximum number of objects; None: no limit.
        nms: IoU threshold of class-wise NMS; None: no NMS.
        nms_decay: None removes suppressed objects; a factor multiplies their scores instead (published: 0.01) and puts
            them after the others.
        class_mask: (K,) bool, classes that exist; None: all. The others have no part in the choice.
        wanted: (K,) bool, classes that are asked for; None: all. They are what a choice among all classes has of them,
            but top-k counts them alone.
    """
    logits = logits.float()
    corners = cxcywh_to_xyxy(boxes.float())
    probability = classes.scores(logits)
    if wanted is not None and not classes.exclusive:  # every class has objects of its own
        class_mask = wanted if class_mask is None else wanted & class_mask
    if class_mask is not None:
        probability = probability.masked_fill(~class_mask, -1.0)  # below the score 0 of an allowed class
    if classes.exclusive:
        scores, labels = probability.max(-1)
        queries = torch.arange(len(scores), device=scores.device)
    else:
        candidates = probability.numel() if top_k is None else top_k
        if nms is not None:
            candidates = max(candidates, PRE_NMS_TOP_K)
        scores, flat = probability.flatten().topk(min(candidates, probability.numel()))
        queries = torch.div(flat, probability.shape[1], rounding_mode="floor")
        labels = flat % probability.shape[1]
    found = Selected(scores, labels, corners[queries], queries)
    if class_mask is not None:  # top_k may exceed the number of candidates of the allowed classes
        allowed = class_mask[found.labels]
        found = Selected(*(value[allowed] for value in found))
    if wanted is not None:
        found = Selected(*(value[wanted[found.labels]] for value in found))
    if nms is not None:
        kept = batched_nms(found.boxes, found.scores, found.labels, nms)
        if nms_decay is None:
            found = Selected(*(value[kept] for value in found))
        else:
            suppressed = torch.ones_like(found.labels, dtype=torch.bool)
            suppressed[kept] = False
            order = torch.cat((kept, suppressed.nonzero()[:, 0]))
            lowered = torch.where(suppressed, found.scores * nms_decay, found.scores)
            found = Selected(lowered[order], found.labels[order], found.boxes[order], found.queries[order])
    elif classes.exclusive:
        order = found.scores.argsort(descending=True, stable=True)
        found = Selected(*(value[order] for value in found))
    return found if top_k is None else Selected(*(value[:top_k] for value in found))


def without_duplicates(logits: Tensor, boxes: Tensor, *, classes: ClassLoss, is_thing: Tensor, nms: float) -> Tensor:
    """Logits in which things that class-wise NMS suppresses have no class, so that segments are made of the others.

    Two queries of one object would share its pixels, and neither might keep enough of its mask.

    Args:
        logits: (Q, C).
        boxes: (Q, 4) cxcywh in [0, 1].
        classes: the meaning of the logits.
        is_thing: (K,) bool.
        nms: IoU threshold.
    """
    scores, labels = classes.ranked(logits.float())
    things = is_thing.to(labels.device)[labels].nonzero()[:, 0]
    kept = batched_nms(cxcywh_to_xyxy(boxes.float())[things], scores[things], labels[things], nms)
    suppressed = torch.zeros_like(labels, dtype=torch.bool)
    suppressed[things] = True
    suppressed[things[kept]] = False
    of_class = torch.arange(logits.shape[-1], device=logits.device) < len(is_thing)
    return logits.masked_fill(suppressed[:, None] & of_class, torch.finfo(logits.dtype).min)


def default_categories(num_classes: int) -> Categories:
    """Classes of a model without class names: those of official COCO models if 91 or 250, else numbered ones."""
    for official in (COCO_CATEGORIES, COCO_PANOPTIC_CATEGORIES):
        if num_classes == len(official):
            return official
    return Categories(Category(label, f"class {label}") for label in range(num_classes))
