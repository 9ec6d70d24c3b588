"""Encoder proposals (Deformable DETR, section 4.2): every token predicts a box, the best become queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrkit.nn.tokens import Tokens, gather_rows
from detrkit.structures import QueryGroup

__all__ = ["Proposals", "anchors", "best_tokens"]


@dataclass(frozen=True)
class Proposals:
    """One proposal per token, with gradients: features (B, S, C), class logits (B, S, K) and box logits (B, S, 4)."""

    features: Tensor
    logits: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, features: Tensor, anchor: Tensor, class_head: nn.Module, box_head: nn.Module) -> Proposals:
        """Apply two heads to features (B, S, C); boxes are relative to anchors (B, S, 4), given as logits."""
        logits: Tensor = class_head(features)
        offset: Tensor = box_head(features)
        return cls(features, logits, offset.float() + anchor)

    def take(self, index: Tensor) -> Proposals:
        """Return the proposals of the tokens (B, Q)."""
        features, logits, boxes = (gather_rows(rows, index) for rows in (self.features, self.logits, self.boxes))
        return Proposals(features, logits, boxes)

    def reference(self) -> Tensor:
        """Return boxes in [0, 1] (B, S, 4) without gradient, as references of queries."""
        return self.boxes.detach().sigmoid()

    def group(self, *, class_agnostic: bool, repeat: int = 1, masked: bool = False) -> QueryGroup:
        """Return the proposals as predictions with their own losses.

        masked: their masks are learned too, if the model has a mask head.
        """
        return QueryGroup(
            self.logits[None],
            self.boxes.sigmoid()[None],
            hidden=self.features[None] if masked else None,
            class_agnostic=class_agnostic,
            repeat=repeat,
        )


def anchors(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Return one box per token, centred on it, with side 0.05 · 2^level: logits (B, S, 4), and usable (B, S) bool.

    Tokens are not usable in padding or if centre or side is outside (0.01, 0.99); their logits are +inf.
    """
    centres = tokens.centres()
    side = tokens.sides()[None, :, None].expand(centres.shape[0], -1, 2)
    boxes = torch.cat((centres, side), dim=-1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~tokens.padding_mask
    logits = torch.log(boxes / (1 - boxes)).masked_fill(~usable[..., None], torch.inf)
    return logits, usable


def best_tokens(scores: Tensor, number: int, padding_mask: Tensor | None = None) -> Tensor:
    """Return the tokens with the highest scores (B, S): (B, min(number, S)), best first.

    padding_mask (B, S): these tokens come last; None: padding competes, as published.
    """
    if padding_mask is not None:
        scores = scores.masked_fill(padding_mask, -torch.inf)
    return scores.topk(min(number, scores.shape[1]), dim=1).indices
