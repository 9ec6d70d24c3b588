"""DAPE: "Harmonizing Content-Position Encoding for Versatile Dense Visual Prediction" (AAAI 2026).

**A reconstruction from the published description**: neither code nor checkpoints of the authors went into it,
their checkpoints are not claimed to load, and their figures are not claimed to be ours.

What changes against Relation-DETR, each behind a switch of its own; with all of them off it is Relation-DETR:

1. **Harmonised sampling** (``sampling``): deformable attention samples where a token's content comes from along with
   the content, and the next layer's position encoding is made from that (:mod:`detrkit.nn.harmonized`).
2. **Low-rank relation** (``relation``, ``relation_rank``): the bias of self-attention is a product of factors of rank
   r, computed inside fused attention; nothing of size N² exists (:class:`detrkit.nn.relation.LowRankRelation`).
3. Two more readings of the description, off by default: queries whose content is sampled from the memory at their box
   (``query_content``), and positions that enter what attention mixes (``position_in_value``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.models.config import check_choices
from detrkit.models.relation_detr import RelationDETR, RelationDETRConfig
from detrkit.nn.deformable import MSDeformAttn, Tokens, on_levels
from detrkit.nn.harmonized import HarmonizedEncoder, PositionCode
from detrkit.ops.ms_deform_attn import ms_deform_attn

__all__ = ["DAPE", "DAPEConfig"]

_CHOICES = {"sampling": ("standard", "harmonized"), "query_content": ("static", "sampled", "static+sampled")}


@dataclass(frozen=True, kw_only=True)
class DAPEConfig(RelationDETRConfig):
    """Configuration of DAPE; the switches are described at the top of this file.

    relation_rank: rank of the relation, a head · code_rank: numbers that tell where content comes from, rounded up to
    a multiple of the heads.
    """

    sampling: str = "harmonized"
    code_rank: int = 16
    relation: str = "low_rank"
    query_content: str = "static"
    position_in_value: bool = False

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
        super().__post_init__()
        check_choices(self, _CHOICES)
        for name in ("relation_rank", "code_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class DAPE(RelationDETR):
    """DAPE with modules passed in; :meth:`from_config` builds the presets."""

    config: DAPEConfig

    @staticmethod
    def build_encoder(config: Any) -> nn.Module:
        """The encoder, with codes where sampling is harmonised."""
        plain: Any = RelationDETR.build_encoder(config)
        encoder: nn.Module = plain
        if config.sampling == "harmonized":
            rank = -(-config.code_rank // config.num_heads) * config.num_heads
            encoder = HarmonizedEncoder(plain.layers, PositionCode(dim=config.hidden_dim, rank=rank))
            encoder.memory_fusion = plain.memory_fusion
        return encoder

    def _build_queries(self) -> None:
        super()._build_queries()
        dim = self.config.hidden_dim
        if self.config.query_content != "static":
            self.content_proj = nn.Linear(dim, dim)
            self.content_norm = nn.LayerNorm(dim)
        if self.config.position_in_value:
            for module in (*self.encoder.modules(), *self.decoder.modules()):
                if isinstance(module, MSDeformAttn):
                    module.value_position = nn.Linear(dim, dim)

    def decode(
        self, content: Tensor, reference: Tensor, memory: Tokens, blocked: Tensor | None = None, apart: int = 0
    ) -> tuple[Tensor, Tensor]:
        """As Relation-DETR; what queries contain may come from the memory where they are."""
        if self.config.query_content != "static":
            sampled = self.content_norm(self.content_proj(at_centres(memory, reference)))
            keep = 1.0 if self.config.query_content == "static+sampled" else 0.0
            content = sampled + keep * content
        return super().decode(content, reference, memory, blocked, apart)

    def query_position(self, boxes: Tensor, content: Tensor, layer: int, code: Tensor | None) -> Tensor:
        """Position of the box, and from the second layer on of where what the layer before read comes from."""
        position = super().query_position(boxes, content, layer, code)
        if code is not None and isinstance(self.encoder, HarmonizedEncoder):
            position = position + self.encoder.code(code)
        return position


def at_centres(memory: Tokens, reference: Tensor) -> Tensor:
    """Mean over the levels of the memory at the centres of boxes (B, Q, 4) -> (B, Q, C)."""
    points = on_levels(reference[..., :2], memory)[:, :, None, :, None]
    value = memory.content.masked_fill(memory.padding_mask[..., None], 0.0)[:, :, None]
    weights = torch.full(points.shape[:-1], 1 / points.shape[3], device=points.device)
    return ms_deform_attn(value, memory.shapes, points.float(), weights)
