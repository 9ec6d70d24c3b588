"""RoIAlign on token maps of several levels in one call: every bin is a weighted bag of map cells.

RoIAlign (aligned, fixed sampling ratio) averages bilinear samples, so each output bin is a fixed linear combination of
at most ``4 · ratio²`` cells. Written as ``embedding_bag`` over channel-last tokens it reads whole rows, pools all
levels and images at once and needs no intermediate sample tensor; ``benchmarks/roi_align.py`` compares it with
``torchvision.ops.roi_align``, which is its oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["RoIBags", "roi_align_bags"]


class RoIBags:
    """Where each RoI bin reads: cell indices (N, 4·ratio²) into the flattened tokens, and their weights."""

    def __init__(self, index: Tensor, weight: Tensor, shape: tuple[int, int, int]) -> None:
        self.index = index
        self.weight = weight
        self.shape = shape

    def pool(self, tokens: Tensor) -> Tensor:
        """Pools tokens (B, S, C), the levels one after the other, to (B, Q, L·K², C)."""
        channels = tokens.shape[-1]
        pooled = F.embedding_bag(
            self.index, tokens.reshape(-1, channels), per_sample_weights=self.weight.to(tokens.dtype), mode="sum"
        )
        return pooled.view(*self.shape, channels)


def _axis(start: Tensor, length: Tensor, cells: Tensor, bins: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Cell pairs and weights along one axis: (B, Q, bins, 2·ratio) each.

    ``start`` and ``length`` (B, Q) in cells, ``cells`` (B, 1, 1) how many cells of the axis exist in each image.
    A sample outside [-1, cells] weighs nothing; between -1 and 0 and beyond the last cell it is clamped.
    """
    samples = bins * ratio
    step = (torch.arange(samples, device=start.device, dtype=start.dtype) + 0.5) / samples
    at = start[..., None] + length[..., None] * step
    inside = ((at >= -1) & (at <= cells)).to(at.dtype) / ratio
    at = torch.minimum(at.clamp(min=0), cells - 1)
    low = at.nan_to_num().floor()  # a box that is not a number must not become an index; its weights tell
    fraction = at - low
    pair = torch.stack((low, torch.minimum(low + 1, cells - 1)), dim=-1)
    weight = torch.stack(((1 - fraction) * inside, fraction * inside), dim=-1)
    return pair.long().unflatten(-2, (bins, ratio)).flatten(-2), weight.unflatten(-2, (bins, ratio)).flatten(-2)


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
    """Bags for boxes (B, Q, 4) xyxy in pixels, pooled from every level.

    Args:
        shapes: (height, width) in cells of each level, in the order of the tokens.
        strides: pixels per cell, one per level.
        resolution: K, bins along each side. Bins are level-major, then row-major: key = level·K² + row·K + column.
        sampling_ratio: samples along each side of a bin.
        aligned: half-pixel shift of "ROIAlignV2"; the published models use True.
        valid_size: (B, 2) height and width in pixels of each image's valid area. Given, the maps end there as if
            every image came alone; None (published) lets boxes read the padding.
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
        # (B, Q, K, 1, r, 1) × (B, Q, 1, K, 1, r): every bin combines its row cells with its column cells.
        index = y[:, :, :, None, :, None] * width + x[:, :, None, :, None, :]
        weight = y_weight[:, :, :, None, :, None] * x_weight[:, :, None, :, None, :]
        indices.append((index + start).flatten(4).flatten(2, 3))
        weights.append(weight.flatten(4).flatten(2, 3))
        start += height * width
    index = torch.cat(indices, dim=2) + image_start
    weight = torch.cat(weights, dim=2)
    return RoIBags(index.flatten(0, 2), weight.flatten(0, 2), (batch, queries, index.shape[2]))
