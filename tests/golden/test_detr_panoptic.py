"""DETR's masks: losses, instances and panoptic segments of the official code, and what would be noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.inference.detr_segmentation import DETRPanopticRules, detr_instance_masks, detr_panoptic_segments
from detrkit.inference.postprocess import select
from detrkit.inference.segmentation import FoundSegments, ImageMasks
from detrkit.losses import Softmax
from detrkit.losses.dense_masks import DenseDiceTerm, DenseMaskTerm, FocalMaskTerm
from detrkit.losses.problem import Matched, Matches, Problem
from detrkit.structures import QueryGroup, Target
from tests.golden.harness import Case
from tests.golden.test_masks import masks_of

NAME = "op_detr_panoptic"
DIVISOR = 7.0  # of the recorded losses
LOSSES = {"loss.sigmoid_focal_loss": FocalMaskTerm(weight=1.0), "loss.dice_loss": DenseDiceTerm(weight=1.0)}


@pytest.fixture
def case(shared: Path, golden_count: dict[str, Any]) -> Case:
    return Case.read(shared, NAME, golden_count)


def loss_of(term: DenseMaskTerm, logits: Tensor, masks: Tensor) -> Tensor:
    """The term of masks (n, P) that are compared cell by cell, query with object."""
    number = torch.arange(len(logits))
    target = Target(labels=number, boxes=torch.rand(len(logits), 4), masks=masks.bool()[:, None])
    group = QueryGroup(
        logits=torch.zeros(1, 1, len(logits), 2),
        boxes=torch.rand(1, 1, len(logits), 4),
        masks=masks_of(logits[None, None, :, None]),
    )
    matches = Matches.fixed((torch.zeros_like(number), number, number), layers=1)
    return term.loss(Matched(Problem.of(group, [target]), matches), DIVISOR)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients(case: Case, name: str) -> None:
    logits = case.tensors["loss.inputs"].clone().requires_grad_()
    (loss,) = loss_of(LOSSES[name], logits, case.tensors["loss.targets"])
    case.close(name, loss)
    loss.backward()
    assert logits.grad is not None
    case.close(f"{name}.grad", logits.grad)


def sizes_of(case: Case, image: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) as the model saw the image, and of the original."""
    processed, original = (case.tensors[f"{kind}_sizes"][image].tolist() for kind in ("processed", "target"))
    return (processed[0], processed[1]), (original[0], original[1])


def test_instances(case: Case) -> None:
    masks = masks_of(case.tensors["pred_masks"][None])
    canvas = sizes_of(case, 0)[0]  # the larger one
    for image in range(2):
        valid, original = sizes_of(case, image)
        (part, inside), *more = detr_instance_masks(ImageMasks(masks, image, canvas, valid, original), torch.arange(14))
        assert (part.start, more) == (0, [])
        case.equal(f"segm.{image}.masks", inside[:, None])
        logits, boxes = (case.tensors[f"pred_{part}"][image] for part in ("logits", "boxes"))
        found = select(logits, boxes, classes=Softmax(), top_k=None)
        order = found.queries.argsort()
        case.equal(f"segm.{image}.labels", found.labels[order])
        case.close(f"segm.{image}.scores", found.scores[order])
        height, width = original
        pixels = found.boxes[order] * torch.tensor([width, height, width, height])
        case.match(f"segm.{image}.boxes", pixels, case.tensors[f"segm.{image}.boxes"], atol=width * case.tolerance())


def segments_of(case: Case, image: int, *, threshold: float, small: int = 4) -> FoundSegments:
    """Official code takes the padding of a batch along, so here the image is alone on its canvas."""
    masks = masks_of(case.tensors["pred_masks"][None])
    processed, original = sizes_of(case, image)
    return detr_panoptic_segments(
        ImageMasks(masks, image, processed, processed, original),
        case.tensors["pred_logits"][image],
        classes=Softmax(),
        is_thing=torch.arange(9) < 4,
        rules=DETRPanopticRules(threshold=threshold, small=small),
    )


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("threshold", [0.85, 0.5])
def test_panoptic_segments(case: Case, threshold: float, image: int) -> None:
    found = segments_of(case, image, threshold=threshold)
    stored = f"panoptic.thr{threshold}.{image}"
    expected = case.info[f"{stored}.segments_info"]
    assert found.labels == [row["category_id"] for row in expected]
    different = (found.ids - 1 != case.tensors[f"{stored}.id_map"]).sum()
    case.match(f"{stored}.id_map", different, torch.tensor(0), atol=2)
    areas = torch.bincount(found.ids.flatten(), minlength=len(expected) + 1)[1:]
    case.match(f"{stored} areas", areas, torch.tensor([row["area"] for row in expected]), atol=2)


def test_perturbed_rules_and_weights_are_noticed(case: Case) -> None:
    stored = "panoptic.thr0.5.0"
    expected = [row["category_id"] for row in case.info[f"{stored}.segments_info"]]
    assert segments_of(case, 0, threshold=0.8).labels != expected
    assert segments_of(case, 0, threshold=0.5, small=200).labels != expected
    dice = loss_of(LOSSES["loss.dice_loss"], case.tensors["loss.inputs"] * 1.01, case.tensors["loss.targets"])
    with pytest.raises(AssertionError, match="dice"):
        case.close("loss.dice_loss", dice[0])
