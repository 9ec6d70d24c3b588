"""Multi-scale deformable attention on a GPU: one kernel forward, one backward, in Triton.

A program has a block of queries of one head, and the channels of the head side by side, so that a token row is read in
vectors. It adds up L · P samples of four corners in registers: samples are never stored. The backward kernel reads the
same corners again; gradients of locations and weights belong to one query each, and those of tokens, which many queries
share, are added by atomics into a float32 buffer, whatever the dtype of the values.

Order matters in sums of floats, so those last bits vary. With ``torch.use_deterministic_algorithms(True)`` the buffer
holds 64-bit integers: contributions are scaled and rounded, and integers add up to the same sum in any order. It costs
twice the traffic of the atomics and one pass over gradient and weights that finds the scale.

Importing this module imports Triton. With ``TRITON_INTERPRET=1`` set before, the kernels run on a CPU, slowly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detrkit.ops.on_gpu import LAUNCHES, launching_on
from detrkit.ops.tuning import BACKWARD_LAUNCHES, FORWARD_LAUNCHES

__all__ = ["launch_backward", "launch_forward"]

MOST_LEVELS = 5
_SIZES = tuple(f"{side}{level}" for level in range(MOST_LEVELS) for side in ("height", "width"))
# Integers that vary from batch to batch: Triton would compile a kernel for each pattern of divisibility.
_VARYING = ("tokens", "queries", *_SIZES)

Shapes = Sequence[Sequence[int]]


@triton.jit
def _size(
    level: tl.constexpr,
    height0, width0, height1, width1, height2, width2, height3, width3, height4, width4,
):  # fmt: skip
    """Height and width of a level."""
    height, width = height0, width0
    if level == 1:
        height, width = height1, width1
    if level == 2:
        height, width = height2, width2
    if level == 3:
        height, width = height3, width3
    if level == 4:
        height, width = height4, width4
    return height, width


@triton.jit
def _cells(locations, inside, height, width, start, STRIDE: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr):
    """The cells around samples, one of every query.

    Returns the offset of the token row of the upper left cell, whether there are cells above, below, left and right,
    and the distances (down, across) from the upper left cell. Samples far outside are moved to two cells before the
    first or behind the last one, where there are no cells; NaN stays NaN in the distances.
    """
    x = tl.load(locations, mask=inside, other=0.0).to(ACC)
    y = tl.load(locations + 1, mask=inside, other=0.0).to(ACC)
    x = tl.clamp(x * width - 0.5, -2.0, width.to(ACC), propagate_nan=tl.PropagateNan.ALL)
    y = tl.clamp(y * height - 0.5, -2.0, height.to(ACC), propagate_nan=tl.PropagateNan.ALL)
    column, row = tl.floor(x), tl.floor(y)
    above = (row >= 0) & (row < height) & inside
    below = (row >= -1) & (row < height - 1) & inside
    left = (column >= 0) & (column < width)
    right = (column >= -1) & (column < width - 1)
    offset = (start + row.to(tl.int32) * width + column.to(tl.int32)).to(INDEX) * STRIDE
    return offset, above, below, left, right, y - row, x - column


@triton.jit
def _place(queries, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """Image, head and first query of this program; heads vary fastest: neighbours read neighbouring memory."""
    blocks = (queries + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    head = program % HEADS
    rest = program // HEADS
    return (rest // blocks).to(tl.int64), head, (rest % blocks) * BLOCK


@triton.jit(do_not_specialize=_VARYING)
def _forward_kernel(
    values, locations, weights, output, tokens, queries,
    height0, width0, height1, width1, height2, width2, height3, width3, height4, width4,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    STRIDE: tl.constexpr = HEADS * WIDTH
    SAMPLES: tl.constexpr = LEVELS * POINTS
    image, head, first = _place(queries, HEADS, BLOCK)
    query = (first + tl.arange(0, BLOCK)).to(INDEX)
    inside = query < queries
    channel = tl.arange(0, PADDED)[None, :]
    known = channel < WIDTH
    values += (image * tokens * HEADS + head) * WIDTH
    output += (image * queries * HEADS + head) * WIDTH
    locations += (image * queries * HEADS + head) * (2 * SAMPLES) + query * (HEADS * 2 * SAMPLES)
    weights += (image * queries * HEADS + head) * SAMPLES + query * (HEADS * SAMPLES)
    mixed = tl.zeros((BLOCK, PADDED), ACC)
    start = 0
    for level in tl.static_range(LEVELS):
        height, width = _size(
            level, height0, width0, height1, width1, height2, width2, height3, width3, height4, width4
        )
        for point in range(POINTS):
            sample = level * POINTS + point
            share = tl.load(weights + sample, mask=inside, other=0.0).to(ACC)
            offset, above, below, left, right, down, across = _cells(
                locations + 2 * sample, inside, height, width, start, STRIDE, INDEX, ACC
            )
            rows = values + offset[:, None] + channel
            lower = rows + width * STRIDE
            upper_left = tl.load(rows, mask=(above & left)[:, None] & known, other=0.0)
            upper_right = tl.load(rows + STRIDE, mask=(above & right)[:, None] & known, other=0.0)
            lower_left = tl.load(lower, mask=(below & left)[:, None] & known, other=0.0)
            lower_right = tl.load(lower + STRIDE, mask=(below & right)[:, None] & known, other=0.0)
            near, far = share * (1.0 - down), share * down
            mixed += (near * (1.0 - across))[:, None] * upper_left.to(ACC)
            mixed += (near * across)[:, None] * upper_right.to(ACC)
            mixed += (far * (1.0 - across))[:, None] * lower_left.to(ACC)
            mixed += (far * across)[:, None] * lower_right.to(ACC)
        start += height * width
    tl.store(output + query[:, None] * STRIDE + channel, mixed, mask=inside[:, None] & known)


@triton.jit(do_not_specialize=_VARYING)
def _backward_kernel(
    gradient, values, locations, weights, scale, grad_values, grad_locations, grad_weights, tokens, queries,
    height0, width0, height1, width1, height2, width2, height3, width3, height4, width4,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    STRIDE: tl.constexpr = HEADS * WIDTH
    SAMPLES: tl.constexpr = LEVELS * POINTS
    image, head, first = _place(queries, HEADS, BLOCK)
    query = (first + tl.arange(0, BLOCK)).to(INDEX)
    inside = query < queries
    channel = tl.arange(0, PADDED)[None, :]
    known = channel < WIDTH
    values += (image * tokens * HEADS + head) * WIDTH
    grad_values += (image * tokens * HEADS + head) * WIDTH
    gradient += (image * queries * HEADS + head) * WIDTH
    base = (image * queries * HEADS + head) * SAMPLES + query * (HEADS * SAMPLES)
    outer = tl.load(gradient + query[:, None] * STRIDE + channel, mask=inside[:, None] & known, other=0.0).to(ACC)
    if FIXED:
        unit = tl.load(scale)
    start = 0
    for level in tl.static_range(LEVELS):
        height, width = _size(
            level, height0, width0, height1, width1, height2, width2, height3, width3, height4, width4
        )
        for point in range(POINTS):
            sample = level * POINTS + point
            share = tl.load(weights + base + sample, mask=inside, other=0.0).to(ACC)
            offset, above, below, left, right, down, across = _cells(
                locations + 2 * (base + sample), inside, height, width, start, STRIDE, INDEX, ACC
            )
            rows = offset[:, None] + channel
            lower = rows + width * STRIDE
            dot = tl.full((BLOCK,), 0.0, ACC)
            dot_x, dot_y = dot, dot
            for corner in tl.static_range(4):
                if corner < 2:
                    there, far, sign_y, where = above, 1.0 - down, -1.0, rows
                else:
                    there, far, sign_y, where = below, down, 1.0, lower
                if corner % 2 == 0:
                    there, beside, sign_x = there & left, 1.0 - across, -1.0
                else:
                    there, beside, sign_x, where = there & right, across, 1.0, where + STRIDE
                mask = there[:, None] & known
                read = tl.load(values + where, mask=mask, other=0.0).to(ACC)
                product = tl.sum(outer * read, axis=1)
                dot += product * far * beside
                dot_x += product * far * sign_x
                dot_y += product * beside * sign_y
                amount = outer * (share * far * beside)[:, None]
                if FIXED:
                    tl.atomic_add(grad_values + where, (amount * unit).to(tl.int64), mask=mask, sem="relaxed")
                else:
                    tl.atomic_add(grad_values + where, amount, mask=mask, sem="relaxed")
            tl.store(grad_weights + base + sample, dot, mask=inside)
            tl.store(grad_locations + 2 * (base + sample), dot_x * share * width, mask=inside)
            tl.store(grad_locations + 2 * (base + sample) + 1, dot_y * share * height, mask=inside)
        start += height * width


def _constants(value: Tensor, locations: Tensor, block: int) -> dict[str, Any]:
    _, tokens, heads, width = value.shape
    queries, _, levels, points = locations.shape[1:5]
    farthest = max(tokens * heads * width, queries * heads * max(2 * levels * points, width))
    return {
        "HEADS": heads,
        "WIDTH": width,
        "PADDED": triton.next_power_of_2(width),
        "LEVELS": levels,
        "POINTS": points,
        "BLOCK": block,
        "INDEX": tl.int32 if farthest < 2**31 else tl.int64,
        "ACC": tl.float64 if value.dtype == torch.float64 else tl.float32,
    }


def _sizes(spatial_shapes: Shapes) -> list[int]:
    sides = [int(side) for shape in spatial_shapes for side in shape]
    return sides + [0] * (2 * MOST_LEVELS - len(sides))


def launch_forward(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Shapes as in :func:`detrkit.ops.ms_deform_attn.ms_deform_attn`."""
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    batch, tokens, heads, width = value.shape
    queries = locations.shape[1]
    output = torch.empty((batch, queries, heads * width), dtype=value.dtype, device=value.device)
    if output.numel() == 0:
        return output
    launch = FORWARD_LAUNCHES[triton.next_power_of_2(width)]
    grid = (batch * heads * triton.cdiv(queries, launch.queries),)
    with launching_on(value):
        _forward_kernel[grid](
            value, locations, weights, output, tokens, queries, *_sizes(spatial_shapes),
            **_constants(value, locations, launch.queries), num_warps=launch.warps,
        )  # fmt: skip
    LAUNCHES["ms_deform_attn forward"] += 1
    return output


def launch_backward(
    gradient: Tensor, value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights."""
    gradient, value = gradient.contiguous(), value.contiguous()
    locations, weights = locations.contiguous(), weights.contiguous()
    batch, tokens, heads, width = value.shape
    queries = locations.shape[1]
    exact = torch.are_deterministic_algorithms_enabled()
    kind = torch.float64 if value.dtype == torch.float64 else torch.float32
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    if gradient.numel() == 0 or weights.numel() == 0:
        return torch.zeros_like(value), grad_locations.zero_(), grad_weights.zero_()
    grad_value = torch.zeros(value.shape, dtype=torch.int64 if exact else kind, device=value.device)
    scale = _scale(gradient, weights, kind) if exact else torch.ones((), dtype=kind, device=value.device)
    launch = BACKWARD_LAUNCHES[triton.next_power_of_2(width)]
    grid = (batch * heads * triton.cdiv(queries, launch.queries),)
    with launching_on(value):
        _backward_kernel[grid](
            gradient, value, locations, weights, scale, grad_value, grad_locations, grad_weights, tokens, queries,
            *_sizes(spatial_shapes), **_constants(value, locations, launch.queries), FIXED=exact,
            num_warps=launch.warps,
        )  # fmt: skip
    LAUNCHES["ms_deform_attn backward"] += 1
    if exact:
        grad_value = grad_value.double() / scale.double()
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _scale(gradient: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Units per 1 of a fixed-point sum that cannot overflow; a power of two, found without synchronisation.

    A cell gets at most one corner of every sample of a head, each at most max |gradient| · max |weight|. Not finite
    where these are not: the whole gradient of tokens is NaN then, so that a gradient scaler sees it.
    """
    largest = gradient.abs().amax().to(dtype) * weights.abs().amax().to(dtype)
    room = 62 - math.ceil(math.log2(weights[0, :, 0].numel()) + 1e-9)
    exponent = (room - largest.log2().ceil()).clamp(max=126.0)  # all below 2^-126 are no longer normal float32
    return torch.where(largest.isfinite(), exponent.exp2(), largest.new_full((), math.nan))
