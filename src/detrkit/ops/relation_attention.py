"""Self-attention with the position relation of Relation-DETR as the operator ``detrkit::relation_attention``.

    softmax(q kᵀ / √d + ReLU(W · sine(scale · log-ratios of the boxes)) + blocked) v

On a GPU the bias is made inside the attention kernel and nothing of size N² is stored; :func:`fused_relation` says
whether a call can use it. Elsewhere :class:`detrkit.nn.relation.FullRelation` computes it a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detrkit.ops.exporting import is_exporting
from detrkit.ops.on_gpu import Trial, usable_backend

__all__ = ["declines_relation", "fused_relation", "relation_attention"]

MOST_HEADS, MOST_CHANNELS = 16, 64
# Bytes of shared memory that the largest kernel needs, as compiled for sm_80 and sm_90 by Triton 3.6.
SHARED_MEMORY = {torch.bfloat16: 143_360, torch.float16: 143_360, torch.float32: 192_512}


def declines_relation(q: Tensor, weight: Tensor, blocked: Tensor | None, dropout: float) -> str | None:
    """Say what the kernels take instead of such arguments of :func:`relation_attention`; None: they take them."""
    heads, width, features = q.shape[1], q.shape[3], weight.shape[1] // 4
    if dropout > 0:
        return f"no dropout, not {dropout}"
    if q.dtype not in SHARED_MEMORY:
        return f"floats of 16 and 32 bits, not {str(q.dtype).removeprefix('torch.')}"
    if heads > MOST_HEADS or width > MOST_CHANNELS:
        return f"up to {MOST_HEADS} heads of {MOST_CHANNELS} channels, not {heads} of {width}"
    if weight.shape[1] % 4 or features < 4 or features & (features - 1):
        return f"a power of two, at least 4, of features per log-ratio, not {features}"
    if q.shape[1:].numel() >= 2**31:
        return "fewer than 2^31 numbers of an image"
    if blocked is not None and (blocked.dim() != 4 or blocked.shape[1] != 1 or blocked.requires_grad):
        return f"a constant mask (B, 1, N, N), not {tuple(blocked.shape)}"
    return None


def _decide(device: torch.device, shared_memory: int, declined: str | None, trial: Trial) -> bool:
    if device.type == "cuda" and declined is None:
        properties = torch.cuda.get_device_properties(device)
        has = int(getattr(properties, "shared_memory_per_block_optin", shared_memory))  # not declared in torch's stubs
        if has < shared_memory:
            declined = f"GPUs with {shared_memory} bytes of shared memory for a block, not {has}"
    return usable_backend("relation_attention", device, declined, trial=trial, oldest=(8, 0)) == "triton"


# What runs is decided when a program is compiled, not traced into it.
_is_triton: Callable[[torch.device, int, str | None, Trial], bool] = torch.compiler.assume_constant_result(_decide)


def fused_relation(q: Tensor, weight: Tensor, blocked: Tensor | None, dropout: float, *, trial: Trial) -> bool:
    """Whether :func:`relation_attention` runs with these tensors here.

    trial: compares it with the form that it stands in for, once before its first use on a GPU.

    Raises:
        DetrkitError: ``DETRKIT_BACKEND=triton`` asks for it, and it cannot.
    """
    if is_exporting():
        return False  # exported programs contain operators that every runtime has
    declined = declines_relation(q, weight, blocked, dropout)
    return _is_triton(q.device, SHARED_MEMORY.get(q.dtype, 0), declined, trial)


@torch.library.custom_op("detrkit::relation_attention", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    blocked: Tensor | None,
    scale: float,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    from detrkit.ops import relation_attention_triton as kernels  # imports Triton

    return kernels.launch_relation_forward(q, k, v, source, target, weight, bias, blocked, scale, temperature)


@_attend.register_fake
def _attend_fake(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape, dtype=torch.float32), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("detrkit::relation_attention_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor,
    output: Tensor,
    logs: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    blocked: Tensor | None,
    scale: float,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from detrkit.ops import relation_attention_triton as kernels

    return kernels.launch_relation_backward(
        gradient, output, logs, q, k, v, source, target, weight, bias, blocked, scale, temperature
    )


@_attend_backward.register_fake
def _attend_backward_fake(
    gradient: Tensor, output: Tensor, logs: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    by_q, by_k, by_v, by_weight, by_bias = (x.new_empty(x.shape) for x in (q, k, v, rest[2], rest[3]))
    return by_q, by_k, by_v, by_weight, by_bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:8], *output)
    ctx.numbers = inputs[8:]


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, output, logs = ctx.saved_tensors
    by_q, by_k, by_v, by_weight, by_bias = _attend_backward(gradient, output, logs, *inputs, *ctx.numbers)
    return by_q, by_k, by_v, None, None, by_weight, by_bias, None, None, None


_attend.register_autograd(_gradients, setup_context=_save)


def relation_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor,
    blocked: Tensor | None = None,
    *,
    scale: float = 100.0,
    temperature: float = 10000.0,
) -> Tensor:
    """Attend with a relation between boxes as bias, in Triton; ask :func:`fused_relation` first.

    Args:
        q: (B, heads, N, d), as are k and v.
        source: (B, N, 4) boxes cxcywh of the queries; no gradient reaches them.
        target: (B, N, 4) boxes of the keys.
        weight: (heads, 4 · F) map of the sine features, log-ratio by log-ratio; computed in float32.
        bias: (heads,) of the map.
        blocked: (B or 1, 1, N, N), added to the logits: -inf where a query must not see a key.
        scale: of the log-ratios.
        temperature: of the sine embedding.

    Returns:
        (B, heads, N, d) in the dtype of q. A query that sees no key gets zeros.
    """
    boxes = (source.detach().float(), target.detach().float())
    mixed, _ = _attend(
        q, k.to(q.dtype), v.to(q.dtype), *boxes, weight.float(), bias.float(), blocked, scale, temperature
    )
    return mixed.to(q.dtype)
