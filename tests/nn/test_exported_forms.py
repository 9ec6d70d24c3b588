"""What exported programs compute in another order than training: the same numbers."""

from __future__ import annotations

import pytest
import torch

from detrkit.nn.deformable import MSDeformAttn
from detrkit.nn.tokens import Tokens
from detrkit.ops.ms_deform_attn import ms_deform_attn, reference
from detrkit.ops.roi_align import roi_align_bags
from detrkit.ops.zeroed import zeroed

SHAPES = [(6, 8), (3, 4), (2, 2)]
CELLS = sum(height * width for height, width in SHAPES)


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def tokens() -> Tokens:
    """Two images, the second padded on the right."""
    padding = [torch.zeros(2, height, width, dtype=torch.bool) for height, width in SHAPES]
    for mask in padding:
        mask[1, :, -1] = True
    valid = torch.tensor([[[width - lost, height] for height, width in SHAPES] for lost in (0, 1)], dtype=torch.float32)
    mask = torch.cat([part.flatten(1) for part in padding], dim=1)
    content = random(2, CELLS, 24)
    return Tokens(content=content, position=content, padding_mask=mask, shapes=SHAPES, valid_cells=valid)


@pytest.mark.parametrize("sides", [2, 4])
def test_deformable_attention(monkeypatch: pytest.MonkeyPatch, sides: int) -> None:
    torch.manual_seed(0)
    attention = MSDeformAttn(dim=24, num_heads=3, num_levels=3, num_points=2)
    for linear in (attention.sampling_offsets, attention.attention_weights):
        torch.nn.init.normal_(linear.weight, std=0.3)
    query, boxes = random(2, 7, 24, seed=1), random(2, 7, 3, sides, seed=2)
    with torch.no_grad():
        expected = attention(query, boxes, tokens())
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        found = attention(query, boxes, tokens())
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_operator(exporting: None) -> None:
    value, weights = random(2, CELLS, 3, 5), random(2, 7, 3, 3, 2, seed=1)
    locations = 1.4 * random(2, 7, 3, 3, 2, 2, seed=2) - 0.2  # some outside
    found = ms_deform_attn(value, SHAPES, locations, weights)
    torch.testing.assert_close(found, reference(value, SHAPES, locations, weights), rtol=0, atol=1e-5)


def test_bags_of_rois(monkeypatch: pytest.MonkeyPatch) -> None:
    corner = 30 * random(2, 5, 2)
    boxes = torch.cat((corner, corner + 10 + 20 * random(2, 5, 2, seed=1)), dim=-1)
    bags = roi_align_bags(boxes, shapes=SHAPES, strides=(8, 16, 32), resolution=3)
    rows = random(2, CELLS, 6)
    expected = bags.pool(rows)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(bags.pool(rows), expected, rtol=0, atol=1e-5)


def test_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = random(2, 3, 4, 5), random(2, 1, 4, 5, seed=1) > 0.5
    expected = zeroed(x, mask)
    assert (expected == 0).sum() == 3 * mask.sum()
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(zeroed(x, mask), expected)
