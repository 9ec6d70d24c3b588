"""Frozen norms inside convolutions: the same features and gradients, half of the activations, the same names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from detrkit.nn.backbone import Backbone
from detrkit.nn.backbone.folded_norm import FoldedConv2d
from detrkit.nn.backbone.frozen_norm import FrozenBatchNorm

NAMES = ["resnet18", "resnet50", "resnet26d", "efficientnet_lite0"]  # d: a deep stem and pooled shortcuts


def build(name: str) -> Backbone:
    """A backbone in double precision whose norms are not the identity."""
    torch.manual_seed(0)
    backbone = Backbone(name=name, num_levels=2, frozen_stride=0).double()
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return backbone


def apart(backbone: Backbone) -> Backbone:
    """The same backbone with norms as operators of their own."""
    other = copy.deepcopy(backbone)
    for module in other.modules():
        if isinstance(module, FrozenBatchNorm):
            module.folded = False
    return other


def run(backbone: Backbone) -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=draw)
    maps = [level.tensor for level in backbone(images, torch.zeros(2, 64, 96, dtype=torch.bool))]
    gradients = torch.autograd.grad(torch.stack([x.square().mean() for x in maps]).sum(), list(backbone.parameters()))
    return [x.detach() for x in maps], list(gradients)


@pytest.mark.parametrize("name", NAMES)
def test_features_and_gradients_are_those_of_norms_apart(name: str) -> None:
    backbone = build(name)
    folded = [module for module in backbone.modules() if isinstance(module, FoldedConv2d)]
    assert len(folded) > 10
    assert all(module.norms[0].folded for module in folded)
    for found, expected in zip(run(backbone), run(apart(backbone)), strict=True):
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, atol=1e-10, rtol=1e-10)


def test_every_norm_of_a_resnet_is_folded_into_the_convolution_that_it_follows() -> None:
    backbone = Backbone(name="resnet50", num_levels=1)
    norms = [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm)]
    assert len(norms) == 53
    assert all(norm.folded for norm in norms)


def test_a_copy_has_norms_of_its_own() -> None:
    backbone = build("resnet18")
    other = copy.deepcopy(backbone)
    inside = {id(module) for module in other.modules()}
    assert all(id(module.norms[0]) in inside for module in other.modules() if isinstance(module, FoldedConv2d))


def test_names_of_weights_stay() -> None:
    names = set(Backbone(name="resnet18", num_levels=1).state_dict())
    assert {"body.conv1.weight", "body.bn1.weight", "body.layer1.0.bn2.running_var"} <= names
    assert not any("norms" in name for name in names)


def test_changed_norms_count_at_once() -> None:
    backbone = build("resnet18").eval()
    before = run(backbone)[0]
    next(module for module in backbone.modules() if isinstance(module, FrozenBatchNorm)).weight.mul_(2)
    for x, y, old in zip(run(backbone)[0], run(apart(backbone))[0], before, strict=True):
        torch.testing.assert_close(x, y, atol=1e-10, rtol=1e-10)
        assert not torch.equal(x, old)


def test_trained_norms_are_left_alone() -> None:
    backbone = Backbone(name="resnet18", num_levels=1, frozen_batch_norm=False)
    assert not any(isinstance(module, FoldedConv2d) for module in backbone.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
