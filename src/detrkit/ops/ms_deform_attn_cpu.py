"""Multi-scale deformable attention on a CPU: every output row is one weighted bag of token rows.

The output of a head is a fixed linear combination of 4 · L · P token rows, the bilinear corners of its samples. As an
``embedding_bag`` it reads whole rows of D numbers and never stores the samples, which are L · P times as large as the
output. The gradient of the tokens is the transposed sum: samples are sorted by their upper left cell and summed as bags
again. Every level is padded with a border of zeros, so corners outside it need no branch.
``benchmarks/ms_deform_attn.py`` compares it with the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["backward", "forward"]

Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Corners:
    """The four token rows of every sample; tensors (B, Q, H, L, P) unless stated otherwise."""

    start: Tensor
    """int32, row of the upper left corner in the padded table."""

    shifts: Tensor
    """(4, H, L, P) int32, row offsets from there to the upper left, upper right, lower left and lower right corner."""

    x: Tensor
    """Horizontal distance of the sample from the upper left corner, in cells."""

    y: Tensor
    """Vertical distance of the sample from the upper left corner, in cells."""

    moves_x: Tensor
    """bool, False where the location is clamped horizontally and has no gradient."""

    moves_y: Tensor
    """bool, False where the location is clamped vertically and has no gradient."""

    def shares(self) -> list[Tensor]:
        """The bilinear weight of each corner."""
        left, upper = 1 - self.x, 1 - self.y
        return [left * upper, self.x * upper, left * self.y, self.x * self.y]


def _levels(shapes: Shapes) -> Iterator[tuple[slice, slice, tuple[int, int]]]:
    """Token range, cell range in the padded table, and size of each level."""
    token = cell = 0
    for height, width in shapes:
        tokens, cells = height * width, (height + 2) * (width + 2)
        yield slice(token, token + tokens), slice(cell, cell + cells), (height, width)
        token, cell = token + tokens, cell + cells


def _cells(shapes: Shapes) -> int:
    return sum((height + 2) * (width + 2) for height, width in shapes)


def _table(value: Tensor, shapes: Shapes) -> Tensor:
    """Pad every level of value (B, S, H, D) with a border of zeros: rows (B·S'·H, D) in float32."""
    batch, _, heads, dim = value.shape
    table = value.new_zeros((batch, _cells(shapes), heads * dim), dtype=torch.float32)
    for tokens, cells, (height, width) in _levels(shapes):
        maps = table[:, cells].unflatten(1, (height + 2, width + 2))
        maps[:, 1:-1, 1:-1] = value[:, tokens].flatten(2).unflatten(1, (height, width))
    return table.view(-1, dim)


def _axis(at: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Locations along one axis -> padded cell (int32), distance from it, and False where the location is clamped."""
    at = (at * 2 - 1).add_(1).mul_(size).sub_(1).div_(2)  # rounded like grid_sample, for parity
    moves = (at >= -1) & (at < size)
    at = torch.minimum(at.clamp_(min=-1), size)
    low = torch.minimum(at.floor(), size - 1)
    # NaN must not become a row index: it reads the first row, and the distance stays NaN.
    return low.nan_to_num(nan=-1.0).int().add_(1), at.sub_(low), moves


def _corners(locations: Tensor, shapes: Shapes) -> Corners:
    batch, _, heads, _, points = locations.shape[:5]

    def spread(numbers: Iterable[int]) -> Tensor:
        """Expand one number per level to (H, L, P) int32; contiguous memory makes the loops below faster."""
        return torch.tensor(list(numbers), dtype=torch.int32)[:, None].expand(heads, -1, points).contiguous()

    width, height = spread(width for _, width in shapes), spread(height for height, _ in shapes)
    first = spread(cells.start for _, cells, _ in _levels(shapes)) * heads
    first += torch.arange(heads, dtype=torch.int32).view(-1, 1, 1)
    column, x, moves_x = _axis(locations[..., 0].float(), width.float())
    row, y, moves_y = _axis(locations[..., 1].float(), height.float())
    below = (width + 2) * heads
    start = row.mul_(below).add_(column.mul_(heads)).add_(first)
    start += torch.arange(batch, dtype=torch.int32).view(-1, 1, 1, 1, 1) * (_cells(shapes) * heads)
    shifts = torch.stack((torch.zeros_like(below), torch.full_like(below, heads), below, below + heads))
    return Corners(start, shifts, x, y, moves_x, moves_y)


def forward(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Shapes as in :func:`detrkit.ops.ms_deform_attn.ms_deform_attn`."""
    batch, _, heads, dim = value.shape
    corners = _corners(locations, spatial_shapes)
    table, share = _table(value, spatial_shapes), weights.float()
    mixed: Tensor | None = None
    for shift, amount in zip(corners.shifts, corners.shares(), strict=True):
        rows = (corners.start + shift).flatten(3).flatten(0, 2)
        corner = F.embedding_bag(
            rows, table, per_sample_weights=amount.mul_(share).flatten(3).flatten(0, 2), mode="sum"
        )
        mixed = corner if mixed is None else mixed.add_(corner)
    assert mixed is not None, "there are four corners"
    return mixed.view(batch, locations.shape[1], heads * dim).to(value.dtype)


def backward(
    gradient: Tensor, value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights."""
    batch, _, heads, dim = value.shape
    corners = _corners(locations, spatial_shapes)
    shares, share = corners.shares(), weights.float()
    outer = gradient.float().reshape(-1, dim)
    samples = share.shape[3] * share.shape[4]

    # Dot products of the output gradient with each token row that was read.
    bags = torch.arange(len(outer), dtype=torch.int32)
    starts, bag = bags * samples, bags[:, None].expand(-1, samples).flatten()
    table = _table(value, spatial_shapes)
    dots = [
        torch.ops.aten._embedding_bag_per_sample_weights_backward(
            outer, table, (corners.start + shift).flatten(), starts, bag, 0
        ).view_as(share)
        for shift in corners.shifts
    ]
    grad_weights = sum((dot * amount for dot, amount in zip(dots, shares, strict=True)), torch.zeros_like(share))
    upper_left, upper_right, lower_left, lower_right = dots
    across, down = upper_right - upper_left, lower_left - upper_left
    twist = lower_right - lower_left - across
    size = torch.tensor(spatial_shapes, dtype=torch.float32)[:, None].flip(-1)
    grad_locations = torch.stack(
        (
            (across + corners.y * twist).mul_(share).mul_(corners.moves_x),
            (down + corners.x * twist).mul_(share).mul_(corners.moves_y),
        ),
        dim=-1,
    ).mul_(size)

    # Sort samples by their upper left cell: one bag of output gradients per cell and corner.
    order = torch.sort(corners.start.flatten(), stable=True)
    cells = torch.arange(batch * _cells(spatial_shapes) * heads, dtype=torch.int32)
    begin = torch.searchsorted(order.values, cells, out_int32=True)
    source = bag[order.indices]
    grad_value = torch.zeros_like(value, dtype=torch.float32)
    for corner, amount in enumerate(shares):
        ordered = amount.mul_(share).flatten()[order.indices]
        summed = F.embedding_bag(source, outer, begin, per_sample_weights=ordered, mode="sum")
        summed = summed.view(batch, _cells(spatial_shapes), heads, dim)
        low, right = divmod(corner, 2)
        for tokens, level, (height, width) in _levels(spatial_shapes):
            maps = summed[:, level].unflatten(1, (height + 2, width + 2))
            maps = maps[:, 1 - low : 1 - low + height, 1 - right : 1 - right + width]
            grad_value[:, tokens] += maps.flatten(1, 2)
    return grad_value.to(value.dtype), grad_locations.to(locations.dtype), grad_weights.to(weights.dtype)
