"""Two-stage queries (Deformable DETR, section 4.2): every token proposes a box, the best become queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detrkit.nn.deformable import Tokens

__all__ = ["Proposals", "anchors", "gather_rows", "propose"]


@dataclass(frozen=True)
class Proposals:
    """What the encoder proposes for every token: logits (B, S, K), box logits (B, S, 4), undetached."""

    logits: Tensor
    boxes: Tensor


def anchors(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """One box a token, centred on it, of side 0.05 · 2^level: logits (B, S, 4), and which are usable (B, S) bool.

    Padded tokens, and those whose centre or side is not within (0.01, 0.99), get +inf: the box 1, 1, 1, 1.
    """
    centres = tokens.centres()
    side = (0.05 * 2.0 ** tokens.levels()).to(centres)[None, :, None].expand(len(centres), -1, 2)
    boxes = torch.cat((centres, side), dim=-1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~tokens.padding_mask
    logits = torch.log(boxes / (1 - boxes)).masked_fill(~usable[..., None], torch.inf)
    return logits, usable


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows (B, K) of values (B, S, D) -> (B, K, D)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def propose(scores: Tensor, number: int, padding_mask: Tensor | None = None) -> Tensor:
    """The best tokens by scores (B, S): (B, min(number, S)), best first.

    padding_mask (B, S): tokens that come last whatever their score; None lets them compete, as published.
    """
    if padding_mask is not None:
        scores = scores.masked_fill(padding_mask, -torch.inf)
    return scores.topk(min(number, scores.shape[1]), dim=1).indices
