"""Classification losses against recorded values and their formulas."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.losses import (
    ClassLoss,
    ClassTerm,
    Criterion,
    Focal,
    GIoUTerm,
    HungarianMatcher,
    L1Term,
    LabelAugmentation,
    Varifocal,
)
from detrkit.losses.classes import focal_loss, varifocal_loss
from detrkit.models import model_config
from detrkit.structures import Predictions
from tests.golden.harness import Case


def test_losses_and_gradients_agree(shared: Path, golden_count: dict[str, Any]) -> None:
    case = Case.read(shared, "op_relation", golden_count)
    target, quality = case.tensors["loss.onehot"], case.tensors["loss.iou_score"]
    losses = {
        "sigmoid_focal_loss": lambda logits: focal_loss(logits, target, alpha=0.25),
        "vari_sigmoid_focal_loss": lambda logits: varifocal_loss(logits, target, quality, alpha=0.25),
    }
    for name, loss in losses.items():
        logits = case.tensors["loss.logits"].clone().requires_grad_()
        total = loss(logits).sum()
        total.backward()
        scale = 40 * 9  # the recorded loss is a mean over 40 queries, divided by 9 boxes
        case.close(f"loss.{name}", total / scale)
        gradient = case.tensors[f"loss.{name}.grad_logits"]
        case.match(f"gradient of {name}", logits.grad, gradient * scale, atol=case.tolerance())


def test_varifocal_weights_carry_no_gradient_and_positives_learn_their_iou() -> None:
    logits = torch.tensor([[2.0, -1.0]], requires_grad=True)
    target, quality = torch.tensor([[1.0, 0.0]]), torch.tensor([0.4], requires_grad=True)
    varifocal_loss(logits, target, quality, alpha=0.25).sum().backward()
    p = logits.detach().sigmoid()
    # weight times the derivative of binary cross entropy, p - target
    torch.testing.assert_close(logits.grad, torch.stack((0.4 * (p[0, 0] - 0.4), 0.75 * p[0, 1] ** 3))[None])
    assert quality.grad is None


def test_varifocal_needs_sigmoid_classification() -> None:
    with pytest.raises(ValueError, match="class_loss='varifocal' needs classification='focal', got 'softmax'"):
        model_config("detr_r50", class_loss="varifocal")
    with pytest.raises(ValueError, match="class_loss must be 'focal' or 'varifocal', got 'vfl'"):
        model_config("dino_r50_4scale", class_loss="vfl")


@pytest.mark.parametrize(("classes", "recorded"), [(Focal(), "SetCriterion"), (Varifocal(), "HybridSetCriterion")])
def test_criterion_of_the_relation_family(
    classes: ClassLoss, recorded: str, shared: Path, golden_count: dict[str, Any]
) -> None:
    case = Case.read(shared, "op_relation", golden_count)
    terms = [  # the recorded gradients belong to the unweighted sum
        ClassTerm(classes=classes, weight=1.0, cost_weight=2.0),
        L1Term(weight=1.0, cost_weight=5.0),
        GIoUTerm(weight=1.0, cost_weight=2.0),
    ]
    criterion = Criterion(
        terms=terms,
        matcher=HungarianMatcher(terms=terms),
        num_queries=30,
        label_augmentation=LabelAugmentation(),
    )
    logits, boxes = (case.tensors[f"criterion.pred_{name}"].clone().requires_grad_() for name in ("logits", "boxes"))
    targets = case.targets("criterion.")
    output = criterion(Predictions(logits, boxes), targets)
    output.total.backward()
    # the recorded layers are the encoder first, then the decoder layers
    names = {"_0": "_enc", "_1": "_0", "": ""}
    for layer, name in names.items():
        for term in ("loss_class", "loss_bbox", "loss_giou"):
            case.loss(
                f"{recorded}.{term}{name}",
                output.terms[term + layer],
                case.info["criterion_losses"][recorded][term + name],
            )
    for layer, image in itertools.product(range(3), range(2)):
        pairs = output.matches.pairs(layer, image, offset=image * len(targets[0]))
        case.equal(f"criterion.indices.layer{layer}.image{image}", pairs)
    for name, tensor in (("logits", logits), ("boxes", boxes)):
        case.close(f"criterion.{recorded}.grad_{name}", tensor.grad)
