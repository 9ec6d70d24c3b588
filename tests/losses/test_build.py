"""Building losses and terms from a configuration."""

from __future__ import annotations

import pytest
import torch

from detrkit.losses import ClassTerm, Focal, GIoUTerm, L1Term, Softmax, Varifocal, build_classes, build_criterion
from detrkit.models import model_config


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("detr_r50", {"no_object_weight": 0.2, "focal_alpha": 0.5}, Softmax(no_object_weight=0.2)),
        ("dino_r50_4scale", {"focal_alpha": 0.5}, Focal(alpha=0.5)),
        ("relation_detr_r50", {}, Varifocal(alpha=0.25)),
    ],
)
def test_class_losses(name: str, options: dict[str, float], expected: object) -> None:
    assert build_classes(model_config(name, **options)) == expected


def test_terms_have_the_weights_of_the_configuration() -> None:
    options = {"cost_class": 1.0, "cost_bbox": 2.0, "cost_giou": 3.0, "loss_class": 4.0, "loss_bbox": 5.0}
    criterion = build_criterion(model_config("detr_r50", **options, loss_giou=6.0))
    assert criterion.terms == criterion.matcher.terms
    assert criterion.terms == [
        ClassTerm(classes=Softmax(no_object_weight=0.1), weight=4.0, cost_weight=1.0),
        L1Term(weight=5.0, cost_weight=2.0),
        GIoUTerm(weight=6.0, cost_weight=3.0),
    ]


def test_scores_do_not_include_no_object() -> None:
    logits = torch.randn(5, 4)
    assert Softmax().scores(logits).shape == (5, 3)
    assert (Softmax().scores(logits).sum(-1) < 1).all()
    assert torch.equal(Focal().scores(logits), logits.sigmoid())
