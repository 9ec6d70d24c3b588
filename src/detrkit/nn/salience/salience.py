"""Salience of image tokens (Salience-DETR, Hou et al., CVPR 2024).

It is predicted from the coarsest level down. The target depends on the place of a token within the objects around it,
not on their size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.nn.tokens import Tokens
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Target

__all__ = ["SaliencePredictor", "SalienceTarget", "upsample_corners"]


def upsample_corners(maps: Tensor, shape: tuple[int, int], cells: Tensor, new_cells: Tensor) -> Tensor:
    """Upsample the valid area of maps (B, h, w) to that of shape, bilinear with aligned corners.

    cells, new_cells (B, 2): number of valid columns and rows in ``maps`` and in the result.
    """
    height, width = maps.shape[1:]
    step = (cells - 1) / (new_cells - 1).clamp(min=1)
    # not one tensor of both numbers, which torch.export would treat as constants; not scalars, which OpenVINO rejects
    span = [torch.full((1,), max(side - 1, 1), dtype=maps.dtype, device=maps.device) for side in (width, height)]
    columns, rows = (torch.arange(size, device=maps.device) for size in shape[::-1])
    x = (columns * step[:, :1] / span[0] * 2 - 1)[:, None].expand(-1, shape[0], -1)
    y = (rows * step[:, 1:] / span[1] * 2 - 1)[:, :, None].expand(-1, -1, shape[1])
    grid = torch.stack((x, y), dim=-1)
    return F.grid_sample(maps[:, None], grid, padding_mode="border", align_corners=True)[:, 0]


class SaliencePredictor(nn.Module):
    """Predicts salience logits of all tokens; each level is guided by the next coarser one.

    The upsampled salience of the coarser level scales the features of a token (by ``alpha``, one number per level). The
    layer norm after it removes most of that scale: in the published layers, guidance and gradient of alpha are tiny.
    """

    def __init__(self, *, dim: int, num_levels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(num_levels - 1).uniform_(-0.3, 0.3))
        self.layer1 = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.layer2 = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 1)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor, tokens: Tokens, *, mask_padding: bool) -> Tensor:
        """features (B, S, C) of the tokens -> logits (B, S) float32; mask_padding: off as published."""
        sizes = tokens.sizes
        valid = (~tokens.padding_mask if mask_padding else torch.ones_like(tokens.padding_mask)).split(sizes, dim=1)
        cells = tokens.valid_cells
        if not mask_padding:
            cells = tokens.extents.expand_as(cells)
        found: list[Tensor] = []  # coarsest level first
        for level in reversed(range(len(sizes))):
            x = features.split(sizes, dim=1)[level]
            height, width = tokens.shapes[level]
            if found:
                guide = upsample_corners(found[-1], (height, width), cells[:, level + 1], cells[:, level])
                x = x + x * guide.flatten(1)[..., None] * self.alpha[level]
            found.append(self._score(x, valid[level]).unflatten(1, (height, width)))
        return torch.cat([scores.flatten(1) for scores in reversed(found)], dim=1)

    def _score(self, x: Tensor, valid: Tensor) -> Tensor:
        """Score (B, n, C) -> (B, n), from the features of a token and their mean over the level."""
        local_part, global_part = self.layer1(x).chunk(2, dim=-1)
        weight = valid[..., None].to(x.dtype)
        mean = (global_part * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return self.layer2(torch.cat((local_part, mean.expand_as(local_part)), dim=-1)).squeeze(-1).float()


@dataclass(frozen=True)
class SalienceTarget:
    """Maps objects to the salience target of every cell ("scale-independent supervision").

    The target is 1 at the centre of an object and lower towards its border. It is 0 outside all objects, and if no
    object around the cell has the size of the cell's level. If several objects overlap, the highest value counts, also
    from an object that does not fit the level.
    """

    centres: Tensor
    """(S, 2), x and y of the cells in pixels."""

    limits: Tensor
    """(S, 2) in pixels; an object fits the level if the distance from the cell to its farthest side is above the first
    and at most the second number."""

    sizes: Tensor
    """(B, 2), width and height of the valid area of the images in pixels."""

    @torch.no_grad()
    def __call__(self, targets: list[Target]) -> Tensor:
        """Return targets (B, S) in [0, 1]."""
        return torch.stack(
            [
                self._of_image(cxcywh_to_xyxy(target.boxes) * size.repeat(2))
                for target, size in zip(targets, self.sizes, strict=True)
            ]
        )

    def _of_image(self, boxes: Tensor) -> Tensor:
        if len(boxes) == 0:
            return self.centres.new_zeros(len(self.centres))
        before, after = self.centres[:, None] - boxes[:, :2], boxes[:, 2:] - self.centres[:, None]
        nearest = torch.minimum(before, after).amin(-1)
        farthest = torch.maximum(before, after).amax(-1)
        inside = nearest > 0
        fits = inside & (farthest > self.limits[:, :1]) & (farthest <= self.limits[:, 1:])
        off_centre = (before - after) / (before + after)
        salience = (1 - 0.5 * off_centre.square().sum(-1).sqrt()).masked_fill(~inside, 0.0)
        return salience.amax(1) * fits.any(1)
