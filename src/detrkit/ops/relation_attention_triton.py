"""Attention with the position relation of Relation-DETR on a GPU: the bias is made inside the kernel, in Triton.

A program has a block of queries and all heads, so that the 4 · F features of a pair of boxes are computed once for all
heads; they are the main cost (docs/kernels.md). For every block of keys it computes the four log-ratios, their sines
and cosines as a matrix (pairs, 4 · F), their product with the 1 x 1 map (4 · F, heads), the ReLU, and attention with a
running softmax. The backward pass does the same again, once by rows (gradients of queries, of the map and its bias) and
once by columns (keys and values), so that no sum needs atomics: gradients do not depend on the order of execution.

Importing this module imports Triton. With ``TRITON_INTERPRET=1`` set before, the kernels run on a CPU, slowly.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detrkit.ops.on_gpu import LAUNCHES, launching_on
from detrkit.ops.tuning import RELATION_COLUMNS, RELATION_FORWARD, RELATION_ROWS, RelationLaunch

__all__ = ["launch_relation_backward", "launch_relation_forward"]

_VARYING = ("queries", "blocked_image")
EPS = tl.constexpr(1e-5)
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _features(
    source, target, i, j, queries, scale, axis: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FREQUENCIES: tl.constexpr, LOG_BASE: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """Sine embedding of one of the four log-ratios of boxes i and j: (rows · columns, 2 · frequencies).

    Sine and cosine are one polynomial each on [-π/4, π/4]; a cosine is a sine one quarter turn ahead. The angle is
    reduced with π/2 in three parts, exact for angles up to 10^4; the largest is scale · log(1 / eps + 1) ≈ 1,152.

    TOGETHER: both of a frequency are made from one reduction, which halves the arithmetic and needs more registers.
    """
    pair = tl.arange(0, ROWS * COLUMNS)
    row, column = i + pair // COLUMNS, j + pair % COLUMNS
    if axis < 2:  # offset along x or y, in widths or heights of box i
        size = tl.load(source + 4 * row + axis + 2, mask=row < queries, other=1.0) + EPS
        offset = tl.load(source + 4 * row + axis, mask=row < queries, other=0.0)
        offset -= tl.load(target + 4 * column + axis, mask=column < queries, other=0.0)
        ratio = tl.abs(offset) / size + 1.0
    else:  # ratio of widths or heights
        size = tl.load(source + 4 * row + axis, mask=row < queries, other=1.0) + EPS
        ratio = size / (tl.load(target + 4 * column + axis, mask=column < queries, other=1.0) + EPS)
    relation = tl.log(ratio) * scale
    if TOGETHER:
        frequency = tl.arange(0, FREQUENCIES)
        sine, cosine, turn = _sine_and_cosine(relation, frequency, LOG_BASE)
        both = tl.join(_turned(sine, cosine, turn), _turned(sine, cosine, turn + 1))
        return tl.reshape(both, (ROWS * COLUMNS, 2 * FREQUENCIES))
    channel = tl.arange(0, 2 * FREQUENCIES)
    sine, cosine, turn = _sine_and_cosine(relation, channel // 2, LOG_BASE)
    return _turned(sine, cosine, turn + (channel % 2)[None, :])


@triton.jit
def _sine_and_cosine(relation, frequency, LOG_BASE: tl.constexpr):
    """Sine and cosine of the angles (pairs, frequencies) less whole quarter turns, and the number of these."""
    angle = relation[:, None] * tl.exp2(frequency.to(tl.float32) * LOG_BASE)[None, :]
    quarters = tl.floor(angle * 0.6366197723675814 + 0.5)
    angle = ((angle - quarters * 1.5703125) - quarters * 4.837512969970703e-4) - quarters * 7.549789954891882e-8
    square = angle * angle
    sine = angle + angle * square * (-1.6666654611e-1 + square * (8.3321608736e-3 - square * 1.9515295891e-4))
    cosine = (
        1.0
        - 0.5 * square
        + square * square * (4.166664568298827e-2 + square * (-1.388731625493765e-3 + square * 2.443315711809948e-5))
    )
    return sine, cosine, quarters.to(tl.int32)


@triton.jit
def _turned(sine, cosine, turn):
    """The sine, so many quarter turns further."""
    value = tl.where((turn & 1) == 0, sine, cosine)
    return tl.where((turn & 2) == 0, value, -value)


@triton.jit
def _scores(
    q, k, weight, bias, blocked, source, target, i, j, queries, softmax_scale, relation_scale,
    REAL: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    FREQUENCIES: tl.constexpr, LOG_BASE: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """The map's output (pairs, heads), and the logits (heads, rows, columns)."""
    head, channel = tl.arange(0, HEADS)[None, :], tl.arange(0, 2 * FREQUENCIES)[:, None]
    raw = tl.load(bias + head, mask=head < REAL, other=0.0) + tl.full((ROWS * COLUMNS, HEADS), 0.0, tl.float32)
    for axis in tl.static_range(4):  # one after another: together they would need too many registers
        features = _features(
            source, target, i, j, queries, relation_scale, axis, ROWS, COLUMNS, FREQUENCIES, LOG_BASE, TOGETHER
        )
        where = weight + (4 * head + axis) * (2 * FREQUENCIES) + channel
        mapped = tl.load(where, mask=(head < REAL) & (channel >= 0), other=0.0)
        raw = tl.dot(features, mapped, acc=raw, input_precision=PRECISION)
    relation = tl.permute(tl.reshape(tl.maximum(raw, 0.0), (ROWS, COLUMNS, HEADS)), (2, 0, 1))
    logits = tl.dot(q, tl.permute(k, (0, 2, 1)), input_precision=PRECISION) * softmax_scale + relation
    row, column = i + tl.arange(0, ROWS), j + tl.arange(0, COLUMNS)
    known = (row[:, None] < queries) & (column[None, :] < queries)
    if MASKED:
        where = blocked + row[:, None].to(tl.int64) * queries + column[None, :]
        logits += tl.load(where, mask=known, other=0.0).to(tl.float32)[None, :, :]
    return raw, tl.where(known[None, :, :], logits, float("-inf"))


@triton.jit
def _heads(
    first, queries,
    HEADS: tl.constexpr, REAL: tl.constexpr, WIDTH: tl.constexpr, TRUE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Offsets of (heads, rows, width) from an image's start, and which of them exist."""
    head, row, channel = tl.arange(0, HEADS)[:, None, None], tl.arange(0, ROWS)[None, :, None], tl.arange(0, WIDTH)
    row += first
    return (head * queries + row) * TRUE + channel[None, None, :], (
        (head < REAL) & (row < queries) & (channel < TRUE)[None, None, :]
    )


@triton.jit(do_not_specialize=_VARYING)
def _forward_kernel(
    q, k, v, source, target, weight, bias, blocked, output, logs, queries, blocked_image,
    softmax_scale, relation_scale,
    REAL: tl.constexpr, HEADS: tl.constexpr, TRUE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, FREQUENCIES: tl.constexpr, LOG_BASE: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    blocks = (queries + ROWS - 1) // ROWS
    image = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * ROWS
    start = image * (REAL * queries)
    source += image * queries * 4
    target += image * queries * 4
    blocked += image * blocked_image
    offset, there = _heads(i, queries, HEADS, REAL, WIDTH, TRUE, ROWS)
    own = tl.load(q + start * TRUE + offset, mask=there, other=0.0).to(PRODUCT)
    largest = tl.full((HEADS, ROWS), float("-inf"), tl.float32)
    total = tl.full((HEADS, ROWS), 0.0, tl.float32)
    mixed = tl.full((HEADS, ROWS, WIDTH), 0.0, tl.float32)
    for j in range(0, queries, COLUMNS):
        other, known = _heads(j, queries, HEADS, REAL, WIDTH, TRUE, COLUMNS)
        keys = tl.load(k + start * TRUE + other, mask=known, other=0.0).to(PRODUCT)
        values = tl.load(v + start * TRUE + other, mask=known, other=0.0).to(PRODUCT)
        _, logits = _scores(
            own, keys, weight, bias, blocked, source, target, i, j, queries, softmax_scale, relation_scale,
            REAL, HEADS, ROWS, COLUMNS, FREQUENCIES, LOG_BASE, MASKED, PRECISION, TOGETHER,
        )  # fmt: skip
        new = tl.maximum(largest, tl.max(logits, axis=2))
        safe = tl.where(new == float("-inf"), 0.0, new)  # a query that sees no key yet
        share = tl.exp(logits - safe[:, :, None])
        shrink = tl.exp(largest - safe)
        total = total * shrink + tl.sum(share, axis=2)
        mixed = mixed * shrink[:, :, None] + tl.dot(share.to(PRODUCT), values, input_precision=PRECISION)
        largest = new
    nothing = total == 0.0
    mixed = mixed / tl.where(nothing, 1.0, total)[:, :, None]
    tl.store(output + start * TRUE + offset, mixed, mask=there)
    head, row = tl.arange(0, HEADS)[:, None], (i + tl.arange(0, ROWS))[None, :]
    # infinite where a query sees nothing: its shares are zero again in the backward pass
    log = tl.where(nothing, float("inf"), largest + tl.log(tl.where(nothing, 1.0, total)))
    tl.store(logs + start + head * queries + row, log, mask=(head < REAL) & (row < queries))


@triton.jit
def _slopes(gradient, values, logits, log, delta, PRECISION: tl.constexpr):
    """Shares of keys, and the gradient of the logits: (heads, rows, columns) each."""
    share = tl.exp(logits - log[:, :, None])
    by_share = tl.dot(gradient, tl.permute(values, (0, 2, 1)), input_precision=PRECISION)
    return share, share * (by_share - delta[:, :, None])


@triton.jit(do_not_specialize=_VARYING)
def _backward_rows_kernel(
    q, k, v, source, target, weight, bias, blocked, gradient, logs, deltas, grad_q, grad_weight, grad_bias,
    queries, blocked_image, softmax_scale, relation_scale,
    REAL: tl.constexpr, HEADS: tl.constexpr, TRUE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, FREQUENCIES: tl.constexpr, LOG_BASE: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    FEATURES: tl.constexpr = 2 * FREQUENCIES
    blocks = (queries + ROWS - 1) // ROWS
    image = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * ROWS
    start = image * (REAL * queries)
    source += image * queries * 4
    target += image * queries * 4
    blocked += image * blocked_image
    offset, there = _heads(i, queries, HEADS, REAL, WIDTH, TRUE, ROWS)
    own = tl.load(q + start * TRUE + offset, mask=there, other=0.0).to(PRODUCT)
    outer = tl.load(gradient + start * TRUE + offset, mask=there, other=0.0).to(PRODUCT)
    head, row = tl.arange(0, HEADS)[:, None], (i + tl.arange(0, ROWS))[None, :]
    known_row = (head < REAL) & (row < queries)
    log = tl.load(logs + start + head * queries + row, mask=known_row, other=float("inf"))
    delta = tl.load(deltas + start + head * queries + row, mask=known_row, other=0.0)
    by_q = tl.full((HEADS, ROWS, WIDTH), 0.0, tl.float32)
    by_weight = tl.full((4, FEATURES, HEADS), 0.0, tl.float32)
    axes = tl.arange(0, 4)[:, None, None]
    by_bias = tl.full((HEADS,), 0.0, tl.float32)
    for j in range(0, queries, COLUMNS):
        other, known = _heads(j, queries, HEADS, REAL, WIDTH, TRUE, COLUMNS)
        keys = tl.load(k + start * TRUE + other, mask=known, other=0.0).to(PRODUCT)
        values = tl.load(v + start * TRUE + other, mask=known, other=0.0).to(PRODUCT)
        raw, logits = _scores(
            own, keys, weight, bias, blocked, source, target, i, j, queries, softmax_scale, relation_scale,
            REAL, HEADS, ROWS, COLUMNS, FREQUENCIES, LOG_BASE, MASKED, PRECISION, TOGETHER,
        )  # fmt: skip
        _, slope = _slopes(outer, values, logits, log, delta, PRECISION)
        by_q += tl.dot(slope.to(PRODUCT), keys, input_precision=PRECISION)
        slope = tl.reshape(tl.permute(slope, (1, 2, 0)), (ROWS * COLUMNS, HEADS))
        slope = tl.where(raw > 0.0, slope, 0.0)
        for axis in tl.static_range(4):
            features = _features(
                source, target, i, j, queries, relation_scale, axis, ROWS, COLUMNS, FREQUENCIES, LOG_BASE, TOGETHER
            )
            part = tl.dot(tl.trans(features), slope, input_precision=PRECISION)
            by_weight += tl.where(axes == axis, part[None, :, :], 0.0)
        by_bias += tl.sum(slope, axis=0)
    tl.store(grad_q + start * TRUE + offset, by_q * softmax_scale, mask=there)
    head = tl.arange(0, HEADS)
    own_sums = tl.program_id(0).to(tl.int64) * REAL + head
    tl.store(grad_bias + own_sums, by_bias, mask=head < REAL)
    channel = axes * FEATURES + tl.arange(0, FEATURES)[None, :, None]
    where = grad_weight + own_sums[None, None, :] * (4 * FEATURES) + channel
    tl.store(where, by_weight, mask=(head < REAL)[None, None, :] & (channel >= 0))


@triton.jit(do_not_specialize=_VARYING)
def _backward_columns_kernel(
    q, k, v, source, target, weight, bias, blocked, gradient, logs, deltas, grad_k, grad_v, queries, blocked_image,
    softmax_scale, relation_scale,
    REAL: tl.constexpr, HEADS: tl.constexpr, TRUE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, FREQUENCIES: tl.constexpr, LOG_BASE: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr, PRODUCT: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    blocks = (queries + COLUMNS - 1) // COLUMNS
    image = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * COLUMNS
    start = image * (REAL * queries)
    source += image * queries * 4
    target += image * queries * 4
    blocked += image * blocked_image
    other, known = _heads(j, queries, HEADS, REAL, WIDTH, TRUE, COLUMNS)
    keys = tl.load(k + start * TRUE + other, mask=known, other=0.0).to(PRODUCT)
    values = tl.load(v + start * TRUE + other, mask=known, other=0.0).to(PRODUCT)
    by_k = tl.full((HEADS, COLUMNS, WIDTH), 0.0, tl.float32)
    by_v = tl.full((HEADS, COLUMNS, WIDTH), 0.0, tl.float32)
    for i in range(0, queries, ROWS):
        offset, there = _heads(i, queries, HEADS, REAL, WIDTH, TRUE, ROWS)
        own = tl.load(q + start * TRUE + offset, mask=there, other=0.0).to(PRODUCT)
        outer = tl.load(gradient + start * TRUE + offset, mask=there, other=0.0).to(PRODUCT)
        head, row = tl.arange(0, HEADS)[:, None], (i + tl.arange(0, ROWS))[None, :]
        known_row = (head < REAL) & (row < queries)
        log = tl.load(logs + start + head * queries + row, mask=known_row, other=float("inf"))
        delta = tl.load(deltas + start + head * queries + row, mask=known_row, other=0.0)
        _, logits = _scores(
            own, keys, weight, bias, blocked, source, target, i, j, queries, softmax_scale, relation_scale,
            REAL, HEADS, ROWS, COLUMNS, FREQUENCIES, LOG_BASE, MASKED, PRECISION, TOGETHER,
        )  # fmt: skip
        share, slope = _slopes(outer, values, logits, log, delta, PRECISION)
        by_v += tl.dot(tl.permute(share.to(PRODUCT), (0, 2, 1)), outer, input_precision=PRECISION)
        by_k += tl.dot(tl.permute(slope.to(PRODUCT), (0, 2, 1)), own, input_precision=PRECISION)
    tl.store(grad_k + start * TRUE + other, by_k * softmax_scale, mask=known)
    tl.store(grad_v + start * TRUE + other, by_v, mask=known)


def _arguments(
    launch: RelationLaunch, q: Tensor, weight: Tensor, blocked: Tensor | None, temperature: float
) -> dict[str, Any]:
    """Constants of the kernels."""
    _, heads, _, width = q.shape
    features = weight.shape[1] // 4
    interpreted = not isinstance(_forward_kernel, triton.JITFunction)  # its products know no bfloat16
    product = torch.float32 if interpreted and q.dtype == torch.bfloat16 else q.dtype
    exact = q.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    return {
        "REAL": heads,
        "HEADS": triton.next_power_of_2(heads),
        "TRUE": width,
        "WIDTH": max(16, triton.next_power_of_2(width)),  # the shortest sum of a product on tensor cores
        "ROWS": launch.rows,
        "COLUMNS": launch.columns,
        "FREQUENCIES": features // 2,
        "LOG_BASE": -2.0 / features * math.log2(temperature),
        "TOGETHER": launch.together,
        "MASKED": blocked is not None,
        "PRODUCT": _TYPES[product],
        "PRECISION": "ieee" if torch.version.hip else launch.exact if exact else "tf32",
        "num_warps": launch.warps,
        "num_stages": 1,  # nothing to prefetch: arithmetic takes longer than reading keys
    }


def _blocked(blocked: Tensor | None, like: Tensor) -> tuple[Tensor, int]:
    """The mask and its distance between images, 0 for one mask of all images."""
    if blocked is None:
        return like, 0
    return blocked.contiguous(), 0 if blocked.shape[0] == 1 else blocked.shape[-1] ** 2


def launch_relation_forward(
    q: Tensor, k: Tensor, v: Tensor, source: Tensor, target: Tensor, weight: Tensor, bias: Tensor,
    blocked: Tensor | None, scale: float, temperature: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention (B, heads, N, d) and the logarithm of the softmax's sums (B, heads, N), both float32.

    Not in the dtype of q: rows of the logits' gradient add up to zero only as exactly as the output is known, and the
    gradient of the map's bias is the sum of all.
    """
    q, k, v, source, target = (x.contiguous() for x in (q, k, v, source, target))
    batch, heads, queries, width = q.shape
    output = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    logs = torch.empty((batch, heads, queries), dtype=torch.float32, device=q.device)
    if output.numel() == 0:
        return output, logs
    mask, apart = _blocked(blocked, source)
    launch = RELATION_FORWARD[q.element_size()]
    grid = (batch * triton.cdiv(queries, launch.rows),)
    with launching_on(q):
        _forward_kernel[grid](
            q, k, v, source, target, weight.contiguous(), bias.contiguous(), mask, output, logs, queries, apart,
            width**-0.5, scale, **_arguments(launch, q, weight, blocked, temperature),
        )  # fmt: skip
    LAUNCHES["relation_attention forward"] += 1
    return output, logs


def launch_relation_backward(
    gradient: Tensor, output: Tensor, logs: Tensor, q: Tensor, k: Tensor, v: Tensor, source: Tensor, target: Tensor,
    weight: Tensor, bias: Tensor, blocked: Tensor | None, scale: float, temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, the map (heads, channels) and its bias (heads,)."""
    gradient, q, k, v, source, target = (x.contiguous() for x in (gradient, q, k, v, source, target))
    weight, bias = weight.contiguous(), bias.contiguous()
    batch, heads, queries, width = q.shape
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    if q.numel() == 0:
        return grad_q, grad_k, grad_v, torch.zeros_like(weight), torch.zeros_like(bias)
    deltas = (gradient.float() * output).sum(-1)
    mask, apart = _blocked(blocked, source)
    by_rows, by_columns = RELATION_ROWS[q.element_size()], RELATION_COLUMNS[q.element_size()]
    row_programs = batch * triton.cdiv(queries, by_rows.rows)
    by_weight = torch.empty((row_programs, *weight.shape), dtype=torch.float32, device=q.device)
    by_bias = torch.empty((row_programs, heads), dtype=torch.float32, device=q.device)
    same = (q, k, v, source, target, weight, bias, mask, gradient, logs, deltas)
    numbers = (queries, apart, width**-0.5, scale)
    shape = (q, weight, blocked, temperature)
    with launching_on(q):
        _backward_rows_kernel[(row_programs,)](
            *same, grad_q, by_weight, by_bias, *numbers, **_arguments(by_rows, *shape)
        )
        grid = (batch * triton.cdiv(queries, by_columns.columns),)
        _backward_columns_kernel[grid](*same, grad_k, grad_v, *numbers, **_arguments(by_columns, *shape))
    LAUNCHES["relation_attention backward"] += 1
    return grad_q, grad_k, grad_v, by_weight.sum(0), by_bias.sum(0)
