"""Frozen batch norm: torch's numbers, and nothing of the maps is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.nn.backbone import Backbone
from detrkit.nn.backbone.frozen_norm import FrozenBatchNorm


def frozen(dtype: torch.dtype = torch.float32) -> FrozenBatchNorm:
    torch.manual_seed(0)
    norm = FrozenBatchNorm(nn.BatchNorm2d(5))
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 1.5)
    return norm.to(dtype)


def by_torch(norm: FrozenBatchNorm, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.02)]
)
def test_maps_are_those_of_torch_to_the_bit_and_gradients_close(
    dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format
) -> None:
    norm = frozen(dtype)
    x = torch.randn(2, 5, 6, 7).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    found, expected = norm(x), by_torch(norm, x)
    assert torch.equal(found, expected)
    assert torch.equal(norm(x.detach()), expected)
    weight = torch.randn_like(found)
    (ours,) = torch.autograd.grad((found * weight).sum(), x)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), x)
    assert ours.dtype == x.dtype
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_map_in_half_precision_with_terms_in_single() -> None:
    x = torch.randn(2, 5, 6, 7, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = frozen()(x)
    found.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_nothing_of_the_map_is_kept() -> None:
    kept: list[Tensor] = []
    x = torch.randn(2, 5, 6, 7, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        frozen()(x)
    assert kept
    assert all(tensor.shape == (5,) for tensor in kept)


def test_half_of_what_a_resnet_keeps() -> None:
    def kept_bytes(backbone: Backbone) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            maps = backbone(torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool))
        assert maps
        return sum(kept.values())

    ours = Backbone(name="resnet18", num_levels=1, frozen_stride=0)
    learning = Backbone(name="resnet18", num_levels=1, frozen_stride=0, frozen_batch_norm=False).eval()
    assert kept_bytes(ours) < 0.6 * kept_bytes(learning)
