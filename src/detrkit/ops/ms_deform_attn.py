"""Multi-scale deformable attention (Zhu et al., ICLR 2021, eq. 3) as the operator ``detrkit::ms_deform_attn``.

A query reads a few points per level instead of all tokens: bilinear samples at ``locations``, summed with ``weights``.
The operator is registered with ``torch.library`` (shapes and gradient included), so torch.compile and torch.export see
one node. Implementations are listed in :data:`BACKENDS`; :func:`active_backend` gives the one that a device uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.ops import ms_deform_attn_cpu

__all__ = ["BACKENDS", "active_backend", "ms_deform_attn", "reference"]


Shapes = Sequence[Sequence[int]]


def _maps_and_points(value: Tensor, shapes: Shapes, locations: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Maps (B·H, D, h, w) and sampling grid (B·H, Q, P, 2) of each level, in float32."""
    batch, _, heads, dim = value.shape
    grid = 2 * locations.float() - 1
    levels = value.float().split([height * width for height, width in shapes], dim=1)
    for level, (height, width) in enumerate(shapes):
        maps = levels[level].permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        yield maps, grid[:, :, :, level].transpose(1, 2).flatten(0, 1)


def reference(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Reference implementation in plain, differentiable torch; shapes as in :func:`ms_deform_attn`."""
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    samples = [
        F.grid_sample(maps, points, mode="bilinear", padding_mode="zeros", align_corners=False)
        for maps, points in _maps_and_points(value, spatial_shapes, locations)
    ]
    share = weights.float().flatten(3).transpose(1, 2).flatten(0, 1)[:, None]
    mixed = (torch.cat(samples, dim=-1) * share).sum(-1)  # (B·H, D, Q)
    return mixed.view(batch, heads * dim, queries).transpose(1, 2).to(value.dtype).contiguous()


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
        sampled = F.grid_sample(maps, points, mode="bilinear", padding_mode="zeros", align_corners=False)
        grad_weights.append((sampled * outer).sum(1))
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


BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference, reference_backward),
    "cpu": Backend(ms_deform_attn_cpu.forward, ms_deform_attn_cpu.backward),
}


def active_backend(device_type: str) -> str:
    """Name of the implementation for a device type ("cpu", "cuda", "mps")."""
    return device_type if device_type in BACKENDS else "reference"


def _shapes(spatial_shapes: Tensor) -> list[list[int]]:
    return [[int(height), int(width)] for height, width in spatial_shapes.tolist()]


@torch.library.custom_op("detrkit::ms_deform_attn", mutates_args=())
def _forward(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    _check(value, spatial_shapes, locations, weights)
    backend = BACKENDS[active_backend(value.device.type)]
    return backend.forward(value, _shapes(spatial_shapes), locations, weights)


@_forward.register_fake
def _forward_fake(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, dim = value.shape
    return value.new_empty(batch, locations.shape[1], heads * dim)


@torch.library.custom_op("detrkit::ms_deform_attn_backward", mutates_args=())
def _backward(
    gradient: Tensor, value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    backend = BACKENDS[active_backend(value.device.type)]
    grad_value, grad_locations, grad_weights = backend.backward(
        gradient, value, _shapes(spatial_shapes), locations, weights
    )
    return grad_value.contiguous(), grad_locations.contiguous(), grad_weights.contiguous()


@_backward.register_fake
def _backward_fake(
    gradient: Tensor, value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor
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


_forward.register_autograd(_gradients, setup_context=_save)


def _check(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> None:
    """Raise ValueError if the shapes do not fit together: samples would be read from wrong places."""
    levels = spatial_shapes.shape[0]
    tokens = sum(height * width for height, width in _shapes(spatial_shapes))
    if value.shape[1] != tokens:
        raise ValueError(
            f"value has {value.shape[1]} tokens, the spatial shapes {_shapes(spatial_shapes)} need {tokens}"
        )
    batch, _, heads, _ = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    if locations.shape != (batch, queries, heads, levels, points, 2) or locations.shape[:5] != weights.shape:
        raise ValueError(
            f"locations {tuple(locations.shape)} must be ({batch}, Q, {heads}, {levels}, P, 2) and weights "
            f"{tuple(weights.shape)} ({batch}, Q, {heads}, {levels}, P)"
        )


def ms_deform_attn(value: Tensor, spatial_shapes: Tensor | Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Multi-scale deformable attention: weighted sum of samples from several levels.

    Exported programs contain the reference implementation: every runtime has its operators, and it works for any image
    size.

    Args:
        value: (B, S, H, D) tokens of all levels one after the other, split into heads.
        spatial_shapes: height and width of each level, as plain numbers or as an (L, 2) int64 tensor. A tensor on the
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
    if torch.compiler.is_exporting():
        return reference(value, spatial_shapes, locations, weights)
    return _forward(value, torch.tensor(spatial_shapes), locations, weights)
