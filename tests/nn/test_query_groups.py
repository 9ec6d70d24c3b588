"""Group DETR: groups do not see each other, are matched separately, and exist in training only."""

from __future__ import annotations

import pytest
import torch

from detrkit.losses import build_criterion
from detrkit.models import Detector, create_model
from detrkit.structures import Predictions, Target
from tests.small import SMALL

MODELS = ["detr_r50", "de_detr_r50", "conditional_detr_r50", "de_conditional_detr_r50"]


def grouped(name: str, groups: int = 3) -> Detector:
    torch.manual_seed(0)
    return create_model(name, **SMALL, dropout=0.0, groups=groups)


def targets() -> list[Target]:
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.4], [0.6, 0.5, 0.3, 0.3]])
    return [Target(labels=torch.tensor([0, 2]), boxes=boxes), Target(labels=torch.tensor([1]), boxes=boxes[:1])]


def parts(out: Predictions) -> list[Predictions]:
    return [out, *out.groups.values()]


@pytest.mark.parametrize("name", MODELS)
def test_each_group_is_a_model_of_its_own(name: str) -> None:
    """Three groups are three models that share everything except the queries; the losses are averaged."""
    model = grouped(name).train()
    images = torch.randn(2, 3, 64, 80)
    out = model(images)
    assert list(out.groups) == ["group1", "group2"]
    losses = []
    for index, part in enumerate(parts(out)):
        alone = grouped(name, groups=1).eval()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        state["query_embed.weight"] = state["query_embed.weight"][12 * index : 12 * (index + 1)]
        alone.load_state_dict(state)
        expected = alone(images)
        torch.testing.assert_close(part.logits, expected.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(part.boxes, expected.boxes, atol=1e-5, rtol=1e-4)
        losses.append(build_criterion(alone.config)(expected, targets()).total)
    criterion = build_criterion(model.config)
    total = criterion(out, targets())
    torch.testing.assert_close(total.total, torch.stack(losses).mean(), atol=1e-3, rtol=1e-4)
    assert {"loss_class_group1", "loss_giou_0_group2"} <= set(total.terms)


@pytest.mark.parametrize("name", MODELS)
def test_inference_uses_the_first_group(name: str) -> None:
    model = grouped(name).eval()
    images = torch.randn(1, 3, 64, 64)
    out = model(images)
    assert out.logits.shape[2] == 12
    assert not out.groups
    with torch.no_grad():
        model.query_embed.weight[12:] += 1.0
    torch.testing.assert_close(model(images).logits, out.logits, atol=0, rtol=0)


def test_every_group_learns() -> None:
    model = grouped("conditional_detr_r50").train()
    out = model(torch.randn(2, 3, 64, 64))
    criterion = build_criterion(model.config)
    criterion(out, targets()).total.backward()
    assert (model.query_embed.weight.grad.view(3, 12, -1).abs().amax((1, 2)) > 0).all()


def test_at_least_one_group_is_required() -> None:
    with pytest.raises(ValueError, match="groups must be at least 1"):
        grouped("detr_r50", groups=0)
