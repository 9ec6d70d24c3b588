"""Boxes and RoIAlign against their oracles."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from detrkit.ops.boxes import cxcywh_to_xyxy, generalized_iou, inverse_sigmoid, xyxy_to_cxcywh
from detrkit.ops.roi_align import roi_align, roi_align_bags, roi_align_maps

BOX = st.tuples(*[st.floats(0, 1, width=32)] * 2, *[st.floats(2**-10, 1, width=32)] * 2)


@given(st.lists(BOX, min_size=1, max_size=8))
def test_conversions_are_inverse(rows: list[tuple[float, ...]]) -> None:
    boxes = torch.tensor(rows)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, atol=1e-6, rtol=0)


@given(st.lists(BOX, min_size=1, max_size=6), st.lists(BOX, min_size=1, max_size=6))
def test_giou_equals_torchvision_and_is_symmetric(
    first: list[tuple[float, ...]], second: list[tuple[float, ...]]
) -> None:
    a, b = (cxcywh_to_xyxy(torch.tensor(rows, dtype=torch.float64)) for rows in (first, second))
    ours = generalized_iou(a[:, None], b[None])
    torch.testing.assert_close(ours, torchvision.ops.generalized_box_iou(a, b), atol=1e-9, rtol=0)
    torch.testing.assert_close(ours, generalized_iou(b[:, None], a[None]).T)
    assert ((ours >= -1 - 1e-9) & (ours <= 1 + 1e-9)).all()


def test_degenerate_boxes_do_not_give_nan() -> None:
    point = torch.tensor([0.5, 0.5, 0.5, 0.5], requires_grad=True)
    value = generalized_iou(point, torch.tensor([0.5, 0.5, 0.5, 0.5]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(point.grad).all()


@given(st.floats(-0.5, 1.5))
def test_inverse_sigmoid_inverts_unclamped_values(value: float) -> None:
    x = torch.tensor(value, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x.clamp(1e-5, 1 - 1e-5), atol=2e-5, rtol=0)


@settings(max_examples=40)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**31 - 1),
)
def test_roi_align_equals_torchvision(h: int, w: int, bins: int, ratio: int, aligned: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = [
        torch.randn(2, 5, h, w, generator=generator),
        torch.randn(2, 5, -(-h // 2), -(-w // 2), generator=generator),
    ]
    # Some boxes reach far outside the maps.
    corner = (torch.rand(2, 3, 2, generator=generator) * 1.6 - 0.3) * torch.tensor([8 * w, 8 * h])
    size = torch.rand(2, 3, 2, generator=generator) * torch.tensor([8 * w, 8 * h])
    boxes = torch.cat((corner, corner + size), dim=-1)
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1).requires_grad_()
    options: dict[str, Any] = {
        "shapes": [tuple(m.shape[-2:]) for m in maps],
        "strides": [8, 16],
        "resolution": bins,
        "sampling_ratio": ratio,
        "aligned": aligned,
    }
    ours = roi_align(tokens, boxes, **options)
    leaves = [m.clone().requires_grad_() for m in maps]
    oracle = torch.cat(
        [
            torchvision.ops.roi_align(leaf, list(boxes), bins, 1 / stride, ratio, aligned).flatten(2).transpose(1, 2)
            for leaf, stride in zip(leaves, (8, 16), strict=True)
        ],
        dim=1,
    ).view(2, 3, -1, 5)
    torch.testing.assert_close(ours, oracle, atol=1e-4, rtol=1e-4)
    weight = torch.randn(ours.shape, generator=generator)
    (ours * weight).sum().backward()
    (oracle * weight).sum().backward()
    gradient = torch.cat([leaf.grad.flatten(2).transpose(1, 2) for leaf in leaves], dim=1)
    torch.testing.assert_close(tokens.grad, gradient, atol=1e-4, rtol=1e-4)
    # the form that a GPU uses
    maps_pooled = roi_align_maps(tokens, boxes, **options)
    torch.testing.assert_close(maps_pooled, oracle)
    (again,) = torch.autograd.grad((maps_pooled * weight).sum(), tokens)
    torch.testing.assert_close(again, gradient, atol=1e-5, rtol=1e-5)
    assert roi_align_maps(tokens.bfloat16(), boxes, **options).dtype == torch.bfloat16


def test_roi_align_with_valid_sizes_equals_that_of_the_cropped_map() -> None:
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randn(2, 4, 9, 11, generator=generator)
    boxes = torch.rand(2, 6, 4, generator=generator).mul(70)
    boxes[..., 2:] = boxes[..., :2] + 30
    valid = torch.tensor([[50, 60], [72, 88]])
    options = {"strides": [8], "resolution": 3}
    tokens = canvas.flatten(2).transpose(1, 2)
    pooled = roi_align_bags(boxes, shapes=[(9, 11)], valid_size=valid, **options).pool(tokens)
    for index, (h, w) in enumerate(((7, 8), (9, 11))):
        crop = canvas[index : index + 1, :, :h, :w]
        alone = roi_align_bags(boxes[index : index + 1], shapes=[(h, w)], **options).pool(
            crop.flatten(2).transpose(1, 2)
        )
        torch.testing.assert_close(pooled[index], alone[0])
    plain = roi_align_bags(boxes, shapes=[(9, 11)], **options).pool(tokens)
    assert not torch.allclose(pooled, plain)


def test_roi_align_of_nan_boxes() -> None:
    """They give NaN only in their own outputs; training then skips the step."""
    boxes = torch.tensor([[[4.0, 4.0, 30.0, 30.0], [float("nan"), 4.0, 30.0, 30.0]]])
    pooled = roi_align_bags(boxes, shapes=[(6, 6)], strides=[8], resolution=2).pool(torch.ones(1, 36, 3))
    assert pooled[0, 0].isfinite().all()
    assert pooled[0, 1].isnan().all()
