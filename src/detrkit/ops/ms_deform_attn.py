"""Multi-scale deformable attention (Zhu et al., ICLR 2021, eq. 3) as the operator ``detrkit::ms_deform_attn``.

A query reads a few points per level instead of all tokens: bilinear samples at ``locations``, summed with ``weights``.
The operator is registered with ``torch.library`` (shapes and gradient included), so torch.compile and torch.export see
one node. Implementations are listed in :data:`BACKENDS`; :func:`chosen_backend` gives the one that a call uses:
Triton's kernels on a GPU, weighted bags on a CPU, plain torch elsewhere and for shapes that the kernels decline.
``DETRKIT_BACKEND`` forces one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.backends import backend_on
from detrkit.ops import ms_deform_attn_cpu
from detrkit.ops.exporting import is_exporting
from detrkit.ops.on_gpu import usable_backend, worst_error

__all__ = ["BACKENDS", "active_backend", "chosen_backend", "ms_deform_attn", "reference", "sample_maps"]


Shapes = Sequence[Sequence[int]]


def _maps_and_points(value: Tensor, shapes: Shapes, locations: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Maps (B·H, D, h, w) and sampling grid (B·H, Q, P, 2) of each level, in float32."""
    batch, _, heads, dim = value.shape
    grid = 2 * locations.float() - 1
    levels = value.float().split([height * width for height, width in shapes], dim=1)
    for level, (height, width) in enumerate(shapes):
        maps = levels[level].permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        yield maps, grid[:, :, :, level].transpose(1, 2).flatten(0, 1)


def _sampled(maps: Tensor, points: Tensor) -> Tensor:
    """Samples (B·H, D, Q, P) of maps (B·H, D, h, w); a level without cells gives zeros."""
    if maps.numel() == 0:
        return maps.new_zeros((*maps.shape[:2], *points.shape[1:3]))
    return F.grid_sample(maps, points, mode="bilinear", padding_mode="zeros", align_corners=False)


def reference(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Reference implementation in plain, differentiable torch; shapes as in :func:`ms_deform_attn`."""
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    samples = [_sampled(maps, points) for maps, points in _maps_and_points(value, spatial_shapes, locations)]
    share = weights.float().flatten(3).transpose(1, 2).flatten(0, 1)[:, None]
    mixed = (torch.cat(samples, dim=-1) * share).sum(-1)  # (B·H, D, Q)
    return mixed.view(batch, heads * dim, queries).transpose(1, 2).to(value.dtype).contiguous()


def sample_maps(value: Tensor, spatial_shapes: Shapes, grid: Tensor, shares: Tensor) -> Tensor:
    """Multi-scale deformable attention in the order that runtimes of exported programs are fast in: queries last, so
    that they read and write whole rows, and a running sum of levels instead of one tensor of all samples.

    Args:
        value: (B, S, H, D) as in :func:`ms_deform_attn`.
        spatial_shapes: height and width of each level.
        grid: (L, B·H, P, Q, 2) sampling points (x, y), from -1 to 1 inside a level.
        shares: (L, B·H, P, Q) attention weights.

    Returns:
        (B, Q, H·D).
    """
    batch, _, heads, dim = value.shape
    mixed = None
    levels = value.float().split([height * width for height, width in spatial_shapes], dim=1)
    for level, points, share, (height, width) in zip(
        levels, grid.unbind(0), shares.unbind(0), spatial_shapes, strict=True
    ):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        found = (_sampled(maps, points) * share[:, None]).sum(2)
        mixed = found if mixed is None else mixed + found
    assert mixed is not None, "no levels"
    return mixed.reshape(batch, heads * dim, -1).transpose(1, 2).to(value.dtype)


def _exported(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """:func:`sample_maps` with the arguments of :func:`ms_deform_attn`."""
    grid = (2 * locations.float() - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    shares = weights.float().permute(3, 0, 2, 4, 1).flatten(1, 2)
    return sample_maps(value, spatial_shapes, grid, shares)


def reference_backward(
    gradient: Tensor, value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights.

    Samples are computed again instead of stored: together they are levels · points times as large as the output.
    """
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    outer = gradient.float().transpose(1, 2).reshape(batch * heads, dim, queries, 1)
    share = weights.float().transpose(1, 2).flatten(0, 1)  # (B·H, Q, L, P)
    grad_value, grad_locations, grad_weights = [], [], []
    for level, (maps, points) in enumerate(_maps_and_points(value, spatial_shapes, locations)):
        grad_weights.append((_sampled(maps, points) * outer).sum(1))
        grad_maps, grad_points = torch.zeros_like(maps), torch.zeros_like(points)
        if maps.numel():
            grad_maps, grad_points = torch.ops.aten.grid_sampler_2d_backward(
                outer * share[:, None, :, level], maps, points, 0, 0, False, [True, True]
            )
        grad_value.append(grad_maps.unflatten(0, (batch, heads)).flatten(3).permute(0, 3, 1, 2))
        grad_locations.append(2 * grad_points)
    return (
        torch.cat(grad_value, dim=1).to(value.dtype),
        torch.stack(grad_locations, dim=2).unflatten(0, (batch, heads)).transpose(1, 2).to(locations.dtype),
        torch.stack(grad_weights, dim=2).unflatten(0, (batch, heads)).transpose(1, 2).to(weights.dtype),
    )


@dataclass(frozen=True)
class Backend:
    """An implementation of the operator and its gradient."""

    forward: Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Shapes, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _triton_forward(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    from detrkit.ops import ms_deform_attn_triton  # imports Triton, which not every installation has

    return ms_deform_attn_triton.launch_forward(value, spatial_shapes, locations, weights)


def _triton_backward(
    gradient: Tensor, value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from detrkit.ops import ms_deform_attn_triton

    return ms_deform_attn_triton.launch_backward(gradient, value, spatial_shapes, locations, weights)


BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference, reference_backward),
    "cpu": Backend(ms_deform_attn_cpu.forward, ms_deform_attn_cpu.backward),
    "triton": Backend(_triton_forward, _triton_backward),
}


def active_backend(device_type: str) -> str:
    """Name of the implementation for a device type ("cpu", "cuda", "mps"), unless it declines a shape."""
    return backend_on(device_type)


MOST_LEVELS, MOST_POINTS, WIDEST = 5, 8, 128
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def declines_sampling(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor) -> str | None:
    """Say what the Triton kernels take instead of such tensors; None: they take them."""
    width, levels, points = value.shape[3], locations.shape[3], locations.shape[4]
    if not 1 <= width <= WIDEST:
        return f"heads of 1 to {WIDEST} channels, not {width}"
    if levels > MOST_LEVELS or points > MOST_POINTS:
        return f"up to {MOST_LEVELS} levels of {MOST_POINTS} points, not {levels} of {points}"
    for tensor in (value, locations, weights):
        if tensor.dtype not in TRITON_DTYPES:
            return f"floats of 16, 32 and 64 bits, not {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.device != value.device:
            return f"tensors on one device, not on {value.device} and {tensor.device}"
    if max(value.shape[1], value.shape[0] * value.shape[2] * locations.shape[1]) >= 2**31:
        return "fewer than 2^31 tokens, and queries of all heads and images"
    return None


def chosen_backend(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor) -> str:
    """Name of the implementation that a call with these tensors uses.

    Raises:
        DetrkitError: ``DETRKIT_BACKEND`` forces one that cannot run here or does not take such tensors.
    """
    declined = declines_sampling(value, spatial_shapes, locations, weights)
    return usable_backend("ms_deform_attn", value.device, declined, trial=sampling_trial)


ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 4e-2}
"""Largest error in a trial, relative to the largest number."""


def sampling_trial(device: torch.device) -> float:
    """Compare the kernels with the reference on a small call (:data:`detrkit.ops.on_gpu.Trial`)."""
    draw, shapes, errors = torch.Generator().manual_seed(0), [[5, 7], [2, 3]], []
    value = torch.randn(2, 41, 2, 34, generator=draw)
    locations = torch.rand(2, 9, 2, 2, 4, 2, generator=draw) * 1.4 - 0.2
    weights = torch.rand(2, 9, 2, 2, 4, generator=draw)
    gradient = torch.randn(2, 9, 68, generator=draw)

    def results(name: str, where: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = value.to(where, dtype), shapes, locations.to(where), weights.to(where)
        backend = BACKENDS[name]
        return backend.forward(*inputs), *backend.backward(gradient.to(where, dtype), *inputs)

    for dtype, allowed in ALLOWED.items():
        found, expected = results("triton", device, dtype), results("reference", torch.device("cpu"), dtype)
        errors.append(worst_error(zip(found, expected, strict=True), allowed))
    return max(errors)


def _run(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    _check(value, shapes, locations, weights)
    backend = BACKENDS[chosen_backend(value, shapes, locations, weights)]
    return backend.forward(value, shapes, locations, weights)


def _run_backward(
    gradient: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    backend = BACKENDS[chosen_backend(value, shapes, locations, weights)]
    grad_value, grad_locations, grad_weights = backend.backward(gradient, value, shapes, locations, weights)
    return grad_value.contiguous(), grad_locations.contiguous(), grad_weights.contiguous()


def _shapes(spatial_shapes: Tensor) -> list[list[int]]:
    return [[int(height), int(width)] for height, width in spatial_shapes.tolist()]


def _pairs(sides: Sequence[int]) -> list[list[int]]:
    return [list(pair) for pair in zip(sides[::2], sides[1::2], strict=True)]


# Twice the same operator: with the shapes as a tensor, and with heights and widths in turn as plain numbers. Numbers
# stay numbers where a model is compiled; a tensor would have to be made on the host, and read again.


@torch.library.custom_op("detrkit::ms_deform_attn", mutates_args=())
def _forward(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return _run(value, _shapes(spatial_shapes), locations, weights)


@torch.library.custom_op("detrkit::ms_deform_attn_backward", mutates_args=())
def _backward(
    gradient: Tensor, value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _run_backward(gradient, value, _shapes(spatial_shapes), locations, weights)


@torch.library.custom_op("detrkit::ms_deform_attn_sides", mutates_args=())
def _sides_forward(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return _run(value, _pairs(sides), locations, weights)


@torch.library.custom_op("detrkit::ms_deform_attn_sides_backward", mutates_args=())
def _sides_backward(
    gradient: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _run_backward(gradient, value, _pairs(sides), locations, weights)


def _fake(value: Tensor, shapes: Tensor | Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, dim = value.shape
    return value.new_empty(batch, locations.shape[1], heads * dim)


def _backward_fake(
    gradient: Tensor, value: Tensor, shapes: Tensor | Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, spatial_shapes, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = _backward(
        gradient.contiguous(), value, spatial_shapes, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


def _sides_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _sides_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = _sides_backward(
        gradient.contiguous(), value, ctx.sides, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


for _operator, _operator_backward in ((_forward, _backward), (_sides_forward, _sides_backward)):
    _operator.register_fake(_fake)
    _operator_backward.register_fake(_backward_fake)
_forward.register_autograd(_gradients, setup_context=_save)
_sides_forward.register_autograd(_sides_gradients, setup_context=_sides_save)


def _check(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    """Raise ValueError if the shapes do not fit together: samples would be read from wrong places."""
    levels = len(spatial_shapes)
    tokens = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != tokens:
        raise ValueError(f"value has {value.shape[1]} tokens, the spatial shapes {spatial_shapes} need {tokens}")
    batch, _, heads, _ = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    if locations.shape != (batch, queries, heads, levels, points, 2) or locations.shape[:5] != weights.shape:
        raise ValueError(
            f"locations {tuple(locations.shape)} must be ({batch}, Q, {heads}, {levels}, P, 2) and weights "
            f"{tuple(weights.shape)} ({batch}, Q, {heads}, {levels}, P)"
        )


def ms_deform_attn(value: Tensor, spatial_shapes: Tensor | Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Multi-scale deformable attention: weighted sum of samples from several levels.

    Exported programs contain :func:`sample_maps`: every runtime has its operators, and it works for any image size.

    Args:
        value: (B, S, H, D) tokens of all levels one after the other, split into heads.
        spatial_shapes: height and width of each level, best as plain numbers, or as an (L, 2) int64 tensor. One on the
            CPU needs no device synchronisation.
        locations: (B, Q, H, L, P, 2) sampling points (x, y) in [0, 1]; samples outside a level are zero.
        weights: (B, Q, H, L, P) attention weights.

    Returns:
        (B, Q, H·D) in the dtype of ``value``; computed in float32.

    Raises:
        ValueError: the shapes do not fit together.
    """
    if isinstance(spatial_shapes, Tensor):
        return _forward(value, spatial_shapes, locations, weights)
    if is_exporting():
        return _exported(value, spatial_shapes, locations, weights)
    return _sides_forward(value, [side for shape in spatial_shapes for side in shape], locations, weights)
