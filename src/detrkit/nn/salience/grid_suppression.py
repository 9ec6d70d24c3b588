"""Redundancy removal among proposals (Salience-DETR): non-maximum suppression of tokens on the feature map."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from detrkit.nn.tokens import Tokens, gather_rows
from detrkit.ops.exporting import is_exporting

__all__ = ["suppress_neighbours"]


@torch.no_grad()
def suppress_neighbours(scores: Tensor, candidates: Tensor, tokens: Tokens, *, threshold: float = 0.3) -> Tensor:
    """Move suppressed tokens to the end of candidates (B, C), tokens sorted by scores (B, S).

    Every token is treated as the box of 2 x 2 cells around it, within its level. With the default threshold, a token
    suppresses its four direct neighbours (IoU 1/3) but not the diagonal ones (1/7).
    """
    batch, count = candidates.shape
    # The better of two neighbours survives, of equal ones the first. Runtimes rank equal scores, which unusable tokens
    # have, each in its own order, so that in an exported program the first is that on the map.
    placed = candidates.sort(dim=1).values if is_exporting() else candidates
    extents = tokens.extents.to(candidates.device).long()
    widths, sizes = extents[:, 0], extents.prod(1)
    level = tokens.levels().to(candidates.device)[placed]
    place = placed - (sizes.cumsum(0) - sizes)[level]
    width = widths[level]
    x, y = place % width, torch.div(place, width, rounding_mode="floor")
    boxes = torch.stack((x - 1, y - 1, x + 1, y + 1), dim=-1).flatten(0, 1).float()
    image = torch.arange(batch, device=level.device)[:, None]
    values = scores.gather(1, placed).flatten().float()
    group = (image * len(widths) + level).flatten()
    if is_exporting():  # batched_nms chooses its algorithm by the number of boxes, which is not known yet
        kept = nms(boxes + group[:, None] * (widths.max() + 2), values, threshold)
    else:
        kept = batched_nms(boxes, values, group, threshold)
    suppressed = torch.ones_like(values).index_fill(0, kept, 0.0).view(batch, count)
    suppressed = torch.zeros_like(scores).float().scatter(1, placed, suppressed).gather(1, candidates)
    order = (suppressed * count + torch.arange(count, device=level.device)).argsort(dim=1)  # ONNX has no stable sort
    return gather_rows(candidates[..., None], order)[..., 0]
