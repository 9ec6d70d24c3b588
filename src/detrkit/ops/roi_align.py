"""RoIAlign on tokens of several levels in one call: weighted bags of map cells, or torchvision's kernel on a GPU.

RoIAlign (aligned, fixed sampling ratio) averages bilinear samples, so each output bin is a fixed linear combination of
at most ``4 · ratio²`` cells. As an ``embedding_bag`` over channel-last tokens it reads whole rows, pools all levels and
images at once and needs no intermediate tensor of samples. On a CPU that is faster than ``torchvision.ops.roi_align``,
its oracle in the tests; on a GPU slower (``benchmarks/roi_align.py`` compares them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.backends import forced_backend
from detrkit.ops.exporting import is_exporting

__all__ = ["RoIBags", "RoIOptions", "roi_align", "roi_align_bags", "roi_align_maps"]


class RoIBags:
    """Cell indices (N, 4·ratio²) of each RoI bin into the flattened tokens, and their weights."""

    def __init__(self, index: Tensor, weight: Tensor, shape: tuple[int, int, int]) -> None:
        self.index = index
        self.weight = weight
        self.shape = shape

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool tokens (B, S, C), levels one after the other, to (B, Q, L·K², C)."""
        channels = tokens.shape[-1]
        rows, weight = tokens.reshape(-1, channels), self.weight.to(tokens.dtype)
        if is_exporting():  # ONNX has no bags: a loop over them would be written
            pooled = torch.bmm(weight[:, None], rows[self.index])
        else:
            pooled = F.embedding_bag(self.index, rows, per_sample_weights=weight, mode="sum")
        return pooled.view(*self.shape, channels)


def _axis(start: Tensor, length: Tensor, cells: Tensor, bins: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Cell pairs and weights along one axis: (B, Q, bins, 2·ratio) each.

    ``start`` and ``length`` (B, Q) are in cells; ``cells`` (B, 1, 1) is the number of valid cells in each image.
    A sample outside [-1, cells] has weight 0; between -1 and 0 and beyond the last cell it is clamped.
    """
    samples = bins * ratio
    step = (torch.arange(samples, device=start.device, dtype=start.dtype) + 0.5) / samples
    at = start[..., None] + length[..., None] * step
    inside = ((at >= -1) & (at <= cells)).to(at.dtype) / ratio
    at = torch.minimum(at.clamp(min=0), cells - 1)
    low = at.nan_to_num().floor()  # NaN must not become an index; the weights stay NaN
    fraction = at - low
    pair = torch.stack((low, torch.minimum(low + 1, cells - 1)), dim=-1)
    weight = torch.stack(((1 - fraction) * inside, fraction * inside), dim=-1)
    return pair.long().unflatten(-2, (bins, ratio)).flatten(-2), weight.unflatten(-2, (bins, ratio)).flatten(-2)


class RoIOptions(TypedDict):
    """What all forms of RoIAlign take.

    Attributes:
        shapes: (height, width) of each level in cells, in the order of the tokens.
        strides: pixels per cell, one per level.
        resolution: K, bins along each side. The order is level-major, then row-major: level·K² + row·K + column.
        sampling_ratio: samples along each side of a bin; 2 unless given.
        aligned: the half-pixel shift of "ROIAlignV2"; True unless given, as in the published models.
    """

    shapes: Sequence[tuple[int, int]]
    strides: Sequence[int]
    resolution: int
    sampling_ratio: NotRequired[int]
    aligned: NotRequired[bool]


def roi_align_bags(
    boxes: Tensor,
    *,
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    resolution: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    valid_size: Tensor | None = None,
) -> RoIBags:
    """Bags for pooling boxes (B, Q, 4), xyxy in pixels, from every level.

    Args:
        boxes: (B, Q, 4) xyxy in pixels.
        shapes, strides, resolution, sampling_ratio, aligned: as in :class:`RoIOptions`.
        valid_size: (B, 2) height and width of each image's valid area in pixels. The maps then end at its border, as
            without padding. None (published): boxes read the padding too.
    """
    batch, queries = boxes.shape[:2]
    boxes = boxes.float()
    offset = 0.5 if aligned else 0.0
    total = sum(height * width for height, width in shapes)
    image_start = torch.arange(batch, device=boxes.device).view(batch, 1, 1, 1) * total
    indices, weights = [], []
    start = 0
    for (height, width), stride in zip(shapes, strides, strict=True):
        if valid_size is None:
            rows = boxes.new_full((batch, 1, 1), height)
            columns = boxes.new_full((batch, 1, 1), width)
        else:
            cells = torch.ceil(valid_size.float() / stride)
            rows, columns = cells[:, 0].view(batch, 1, 1), cells[:, 1].view(batch, 1, 1)
        corner = boxes / stride - offset
        size = corner[..., 2:] - corner[..., :2]
        if not aligned:
            size = size.clamp(min=1)
        x, x_weight = _axis(corner[..., 0], size[..., 0], columns, resolution, sampling_ratio)
        y, y_weight = _axis(corner[..., 1], size[..., 1], rows, resolution, sampling_ratio)
        # (B, Q, K, 1, r, 1) × (B, Q, 1, K, 1, r): every bin combines its rows with its columns.
        index = y[:, :, :, None, :, None] * width + x[:, :, None, :, None, :]
        weight = y_weight[:, :, :, None, :, None] * x_weight[:, :, None, :, None, :]
        indices.append((index + start).flatten(4).flatten(2, 3))
        weights.append(weight.flatten(4).flatten(2, 3))
        start += height * width
    index = torch.cat(indices, dim=2) + image_start
    weight = torch.cat(weights, dim=2)
    return RoIBags(index.flatten(0, 2), weight.flatten(0, 2), (batch, queries, index.shape[2]))


def roi_align_maps(
    tokens: Tensor,
    boxes: Tensor,
    *,
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    resolution: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """The same by torchvision, level by level; arguments and order as in :func:`roi_align_bags`."""
    from torchvision.ops import roi_align as pool

    regions, pooled = list(boxes.float()), []
    levels = tokens.float().split([height * width for height, width in shapes], dim=1)  # it has no kernel for bfloat16
    for level, shape, stride in zip(levels, shapes, strides, strict=True):
        maps = level.transpose(1, 2).unflatten(2, shape)
        pooled.append(pool(maps, regions, resolution, 1 / stride, sampling_ratio, aligned).flatten(2).transpose(1, 2))
    return torch.cat(pooled, dim=1).view(*boxes.shape[:2], -1, tokens.shape[-1]).to(tokens.dtype)


def roi_align(
    tokens: Tensor, boxes: Tensor, *, valid_size: Tensor | None = None, **options: Unpack[RoIOptions]
) -> Tensor:
    """Pool boxes from tokens (B, S, C), levels one after the other: (B, Q, L·K², C), by the faster way of the device.

    torchvision's kernel has no valid sizes, and its gradient is not deterministic: weighted bags do these. Boxes and
    ``valid_size`` as in :func:`roi_align_bags`.
    """
    kernel = tokens.is_cuda and valid_size is None and forced_backend() != "reference"
    if kernel and not torch.are_deterministic_algorithms_enabled() and not is_exporting():
        return roi_align_maps(tokens, boxes, **options)
    return roi_align_bags(boxes, valid_size=valid_size, **options).pool(tokens)
