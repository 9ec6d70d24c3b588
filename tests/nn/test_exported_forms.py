"""What exported programs compute in another order than training: the same numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detrkit.nn.deformable import MSDeformAttn
from detrkit.nn.salience.encoder import SalienceFilter
from detrkit.nn.salience.grid_suppression import suppress_neighbours
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


@pytest.mark.parametrize("mask_padding", [False, True])
def test_salient_tokens_of_images_smaller_than_the_canvas(monkeypatch: pytest.MonkeyPatch, mask_padding: bool) -> None:
    padded = tokens()
    widths = torch.tensor([[6, 3, 2], [4, 2, 1]])  # of 8, 4 and 2 columns
    padding = [
        torch.arange(width).expand(2, height, -1) >= widths[:, level, None, None]
        for level, (height, width) in enumerate(SHAPES)
    ]
    heights = torch.tensor([height for height, _ in SHAPES]).expand(2, -1)
    padded = replace(
        padded,
        padding_mask=torch.cat([part.flatten(1) for part in padding], dim=1),
        valid_cells=torch.stack((widths, heights), dim=-1).float(),
    )
    chosen = SalienceFilter(levels=(0.4, 0.8, 1.0), layers=(1.0, 0.6, 0.2), mask_padding=mask_padding)
    scores = random(2, CELLS, seed=3)
    expected = chosen(scores, padded)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    found = chosen(scores, padded)
    assert [focus.index.shape[1] for focus in expected] == [25, 15, 5]
    assert [focus.index.shape[1] for focus in found] == [34, 21, 7]
    for ours, theirs in zip(found, expected, strict=True):
        for image in range(2):
            for part in ("seen", "kept"):
                a, b = getattr(ours, part)[image], getattr(theirs, part)[image]
                assert ours.index[image, a].tolist() == theirs.index[image, b].tolist()


def test_of_equal_neighbours_the_first_on_the_map_survives(exporting: None) -> None:
    scores = torch.tensor([[1.0] * 6 + [2.0] + [1.0] * (CELLS - 7)])
    one = replace(tokens(), valid_cells=tokens().valid_cells[:1])
    in_order = scores.argsort(dim=1, descending=True, stable=True)
    backwards = torch.cat((in_order[:, :1], in_order[:, 1:].flip(1)), dim=1)
    survivors = 24 + 6 + 2  # a chessboard per level
    for candidates in (in_order, backwards):
        kept = set(suppress_neighbours(scores, candidates, one)[0, :survivors].tolist())
        assert kept >= {0, 2, 4, 6, 9, 11, 13, 15}
        assert not kept & {1, 3, 5, 7, 8, 10, 12, 14}
