"""Two-stage queries (Deformable DETR, section 4.2): every token proposes a box, the best become queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrkit.nn.tokens import Tokens, gather_rows
from detrkit.structures import QueryGroup

__all__ = ["Proposals", "anchors", "propose"]


@dataclass(frozen=True)
class Proposals:
    """What the encoder proposes for every token: logits (B, S, K), box logits (B, S, 4), undetached."""

    logits: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, features: Tensor, start: Tensor, class_head: nn.Module, box_head: nn.Module) -> Proposals:
        """What two heads make of features (B, S, C), boxes relative to anchors (B, S, 4) given as logits."""
        logits: Tensor = class_head(features)
        offset: Tensor = box_head(features)
        return cls(logits, offset.float() + start)

    def take(self, index: Tensor) -> Proposals:
        """Those of the tokens (B, Q)."""
        return Proposals(gather_rows(self.logits, index), gather_rows(self.boxes, index))

    def reference(self) -> Tensor:
        """Boxes in [0, 1] (B, S, 4) without gradient, for queries to start from."""
        return self.boxes.detach().sigmoid()

    def group(self, *, class_agnostic: bool, repeat: int = 1) -> QueryGroup:
        """The proposals as predictions with losses of their own."""
        return QueryGroup(self.logits[None], self.boxes.sigmoid()[None], class_agnostic=class_agnostic, repeat=repeat)


def anchors(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """One box per token, centred on it, of side 0.05 · 2^level: logits (B, S, 4), and which are usable (B, S) bool.

    Padded tokens, and those whose centre or side is not within (0.01, 0.99), get +inf: the box 1, 1, 1, 1.
    """
    centres = tokens.centres()
    side = (0.05 * 2.0 ** tokens.levels()).to(centres)[None, :, None].expand(centres.shape[0], -1, 2)
    boxes = torch.cat((centres, side), dim=-1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~tokens.padding_mask
    logits = torch.log(boxes / (1 - boxes)).masked_fill(~usable[..., None], torch.inf)
    return logits, usable


def propose(scores: Tensor, number: int, padding_mask: Tensor | None = None) -> Tensor:
    """The best tokens by scores (B, S): (B, min(number, S)), best first.

    padding_mask (B, S): tokens that come last whatever their score; None lets them compete, as published.
    """
    if padding_mask is not None:
        scores = scores.masked_fill(padding_mask, -torch.inf)
    return scores.topk(min(number, scores.shape[1]), dim=1).indices
