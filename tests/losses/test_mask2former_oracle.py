"""Losses, costs and assignments of Mask2Former against the implementation in Hugging Face transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.losses import ClassTerm, Criterion, HungarianMatcher, LabelAugmentation, Softmax
from detrkit.losses.mask_terms import DiceTerm, MaskTerm
from detrkit.losses.points import MaskPoints
from detrkit.losses.terms import Term
from detrkit.nn.masks import EmbeddedMasks
from detrkit.structures import Predictions, Target

CLASSES, QUERIES, DIM, SIDE, POINTS = 5, 20, 12, 24, 784
WEIGHTS = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0, "no_object_weight": 0.1}


@pytest.fixture(scope="module")
def oracle() -> Any:
    """The loss of transformers, which the tests need: it belongs to the extra ``dev``."""
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    return Mask2FormerLoss(Mask2FormerConfig(num_labels=CLASSES, train_num_points=POINTS, **WEIGHTS), {})


def criterion() -> Criterion:
    """The same loss from our terms."""
    points = MaskPoints(number=POINTS, border="zeros")
    terms: list[Term] = [
        ClassTerm(classes=Softmax(), weight=2.0, cost_weight=2.0),
        MaskTerm(points=points, weight=5.0, cost_weight=5.0),
        DiceTerm(points=points, weight=5.0, cost_weight=5.0),
    ]
    matcher = HungarianMatcher(terms=terms)
    return Criterion(terms=terms, matcher=matcher, num_queries=QUERIES, label_augmentation=LabelAugmentation())


def batch(counts: tuple[int, ...]) -> tuple[Tensor, EmbeddedMasks, list[Target]]:
    """Class logits (1, B, Q, C + 1), masks, and targets with random rectangles."""
    generator = torch.Generator().manual_seed(sum(counts))
    logits = torch.randn(1, len(counts), QUERIES, CLASSES + 1, generator=generator)
    queries = torch.randn(1, len(counts), QUERIES, DIM, generator=generator)
    pixels = torch.randn(len(counts), DIM, SIDE, SIDE, generator=generator)
    targets = []
    for count in counts:
        masks = torch.zeros(count, 4 * SIDE, 4 * SIDE, dtype=torch.bool)
        for mask, (top, left) in zip(
            masks, torch.randint(0, 60, (count, 2), generator=generator).tolist(), strict=True
        ):
            mask[top : top + 30, left : left + 25] = True
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        targets.append(Target(labels=labels, boxes=torch.full((count, 4), 0.5), masks=masks))
    return logits.requires_grad_(), EmbeddedMasks(queries.requires_grad_(), pixels.requires_grad_(), "zeros"), targets


@pytest.mark.parametrize("counts", [(5, 3), (1, 7), (0, 4), (3, QUERIES + 4)], ids=str)
def test_losses_assignments_and_gradients(oracle: Any, counts: tuple[int, ...]) -> None:
    """Both draw the same random points in the same order: per image for costs, then for all matched masks."""
    logits, masks, targets = batch(counts)
    inputs = (logits, *masks.factors)
    torch.manual_seed(0)
    given = [target.masks.float() for target in targets if target.masks is not None]
    labels = [target.labels for target in targets]
    wanted = oracle(masks.dense(), logits[0], given, labels)
    torch.manual_seed(0)
    boxes = torch.full((1, len(counts), QUERIES, 4), 0.5)
    found = criterion()(Predictions(logits, boxes, masks), targets)
    names = {"loss_class": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}
    for ours, theirs in names.items():
        torch.testing.assert_close(found.terms[ours], wanted[theirs].detach(), atol=2e-6, rtol=2e-6)
    total = 2 * wanted["loss_cross_entropy"] + 5 * wanted["loss_mask"] + 5 * wanted["loss_dice"]
    for ours, theirs in zip(*(torch.autograd.grad(value, inputs) for value in (found.total, total)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    torch.manual_seed(0)
    pairs = oracle.matcher(masks.dense(), logits[0], given, labels)
    start = 0
    for image, (query, index) in enumerate(pairs):
        assert found.matches.pairs(0, image, start).tolist() == [query.tolist(), index.tolist()]
        start += counts[image]
