"""The simple feature pyramid: any power of two as stride, all levels from the same map."""

from __future__ import annotations

import torch
from torch import nn

from detrkit.nn.backbone.feature_pyramid import SimpleFeaturePyramid


def test_levels_have_the_requested_strides() -> None:
    pyramid = SimpleFeaturePyramid(in_channels=48, stride=16, strides=(4, 8, 16, 32, 64), dim=32)
    levels = pyramid(torch.randn(2, 48, 8, 12))
    assert [tuple(level.shape) for level in levels] == [
        (2, 32, 128 // stride, 192 // stride) for stride in (4, 8, 16, 32, 64)
    ]


def test_levels_are_built_as_published() -> None:
    """Two, one and no transposed convolutions, then pooling; 1x1 and 3x3 convolution, each with its norm."""
    pyramid = SimpleFeaturePyramid(in_channels=48, stride=16, strides=(4, 8, 16, 32), dim=32)
    kinds = [
        [type(module) for module in level if isinstance(module, nn.ConvTranspose2d | nn.MaxPool2d)]
        for level in pyramid.levels
    ]
    assert kinds == [[nn.ConvTranspose2d] * 2, [nn.ConvTranspose2d], [], [nn.MaxPool2d]]
    widths = [
        [
            (module.in_channels, module.out_channels, *module.kernel_size)
            for module in level
            if type(module) is nn.Conv2d
        ]
        for level in pyramid.levels
    ]
    assert widths == [[(channels, 32, 1, 1), (32, 32, 3, 3)] for channels in (12, 24, 48, 48)]


def test_every_cell_of_the_map_reaches_every_level() -> None:
    pyramid = SimpleFeaturePyramid(in_channels=16, stride=16, strides=(8, 16, 32), dim=8).eval()
    x = torch.randn(1, 16, 4, 6, requires_grad=True)
    for level in pyramid(x):
        (gradient,) = torch.autograd.grad(level.square().sum(), x, retain_graph=True)
        reached = gradient.abs().sum((0, 1)) > 0
        # pooling selects one of four cells per channel
        assert reached.all()
