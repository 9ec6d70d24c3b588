"""DINO: "DETR with Improved DeNoising Anchor Boxes" (Zhang et al., ICLR 2023, arXiv 2203.03605).

What changes against two-stage Deformable DETR, all of it in :meth:`DINO.detect`:

1. **Mixed query selection** (section 3.4): proposals give the boxes, learned embeddings the content.
2. **Contrastive denoising** (section 3.3): noised objects as further queries in training.
3. **Look forward twice** (section 3.5): the loss of a layer also trains the box of the layer before.

With ``relation`` self-attention is biased by how boxes lie to each other: DINO++ of the Relation-DETR repository.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrkit.models.deformable_detr import DeformableDETR, DeformableDETRConfig
from detrkit.nn.attention import AttentionBias
from detrkit.nn.deformable import Tokens, on_levels
from detrkit.nn.denoising import ContrastiveDenoising, DenoisingQueries
from detrkit.nn.heads import MLP
from detrkit.nn.position import sine_boxes
from detrkit.nn.proposals import gather_rows
from detrkit.nn.relation import PositionRelation
from detrkit.ops.boxes import inverse_sigmoid
from detrkit.structures import Predictions, QueryGroup, Target

__all__ = ["DINO", "DINOConfig"]

EPS = 1e-3  # of DINO's inverse sigmoid


@dataclass(frozen=True, kw_only=True)
class DINOConfig(DeformableDETRConfig):
    """Configuration of DINO (spec dino.md).

    shared_heads: one class and one box head for all decoder layers, as published · relation: "full" adds the position
    relation · query_scale: from the second layer on, the content of a query scales its position (Relation-DETR) ·
    denoising_*: see :class:`detrkit.nn.denoising.ContrastiveDenoising`; 0 queries switch it off ·
    denoising_extra_label: the label table has one row more than classes, which nothing uses, as published.
    """

    ffn_dim: int = 2048
    dropout: float = 0.0
    refine_boxes: bool = True
    two_stage: bool = True
    proposal_class_agnostic: bool = False
    position_offset: float = 0.0
    position_temperature: float = 20.0
    shared_heads: bool = True
    relation: str = "none"
    query_scale: bool = False
    denoising_queries: int = 100
    denoising_label_noise: float = 0.5
    denoising_box_noise: float = 1.0
    denoising_extra_label: bool = True
    denoising_mask_unused: bool = False
    denoising_max_queries: int | None = None

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
        super().__post_init__()
        if self.relation not in ("none", "full"):
            raise ValueError(f"relation must be 'none' or 'full', got {self.relation!r}")
        if not (self.two_stage and self.refine_boxes):
            raise ValueError("DINO refines the proposals of its encoder: two_stage and refine_boxes must be True")


def position_head(in_dim: int, dim: int) -> MLP:
    """MLP of two layers with Xavier weights."""
    head = MLP(in_dim, dim, dim, num_layers=2)
    for layer in head.layers:
        nn.init.xavier_uniform_(layer.get_parameter("weight"))
    return head


class DINO(DeformableDETR):
    """DINO with modules passed in; :meth:`from_config` builds the published ones."""

    config: DINOConfig

    def _build_queries(self) -> None:
        config, dim = self.config, self.config.hidden_dim
        self._build_proposals()
        self.tgt_embed = nn.Embedding(config.num_queries, dim)
        self.decoder.norm = nn.LayerNorm(dim)
        self.decoder.ref_point_head = position_head(2 * dim, dim)
        if config.query_scale:
            self.decoder.query_scale = position_head(dim, dim)
        if config.relation == "full":
            self.decoder.relation = PositionRelation(num_heads=config.num_heads)
        else:
            nn.init.xavier_uniform_(self.tgt_embed.weight)  # as in the official code, which DINO++ does not do
        self.denoising = ContrastiveDenoising(
            num_classes=config.num_classes,
            dim=dim,
            label_rows=config.num_classes + config.denoising_extra_label,
            number=config.denoising_queries,
            label_noise=config.denoising_label_noise,
            box_noise=config.denoising_box_noise,
            mask_unused=config.denoising_mask_unused,
            max_queries=config.denoising_max_queries,
        )

    def _build_heads(self) -> None:
        super()._build_heads()
        if self.config.shared_heads:
            self.class_embed, self.bbox_embed = self.class_embed[:1], self.bbox_embed[:1]

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Encoder; queries from its proposals and, in training, from noised objects; decoder."""
        memory = self.encode(images, padding_mask)
        content, reference, encoder = self._mixed_queries(memory)
        noise = None
        if self.training and targets is not None and self.config.denoising_queries:
            noise = self.denoising(targets, content.shape[1])
        if noise is not None:
            content = torch.cat((noise.content, content), dim=1)
            reference = torch.cat((noise.boxes, reference), dim=1)
        logits, boxes = self.decode(content, reference, memory, None if noise is None else noise.bias)
        if self.training:
            # a batch without objects still reaches the label table (all processes must have the same graph)
            logits = logits + 0.0 * self.denoising.label_encoder.weight.sum()
        return self._split(logits, boxes, noise, encoder)

    def decode(
        self, content: Tensor, reference: Tensor, memory: Tokens, blocked: Tensor | None = None, apart: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Queries with content (B, N, C) and boxes (B, N, 4) -> logits (L, B, N, K) and boxes (L, B, N, 4).

        blocked: bias of self-attention, -inf where a query must not see another. apart: the last so many queries
        attend to each other only, without position relation; neither do they count in ``blocked``.
        """
        bias: Tensor | AttentionBias | None = blocked
        related = content.shape[1] - apart
        logits: list[Tensor] = []
        boxes: list[Tensor] = [reference]
        base = reference  # keeps its gradient, so that this layer's loss trains the step before
        for index, layer in enumerate(self.decoder.layers):
            scaled = on_levels(reference, memory)
            position = self.decoder.ref_point_head(
                sine_boxes(scaled[:, :, 0], self.config.hidden_dim // 2, order=(1, 0, 2, 3)).to(content.dtype)
            )
            if self.config.query_scale and index:
                position = position * self.decoder.query_scale(content)
            content = layer(content, position, scaled, memory, bias, apart)
            hidden = self.decoder.norm(content)
            head = 0 if self.config.shared_heads else index
            logits.append(self.class_embed[head](hidden))
            boxes.append((self.bbox_embed[head](hidden).float() + inverse_sigmoid(base, EPS)).sigmoid())
            if index + 1 < len(self.decoder.layers):
                base = (self.bbox_embed[head](content).float() + inverse_sigmoid(reference, EPS)).sigmoid()
                reference = base.detach()
                if self.config.relation == "full":
                    bias = self.decoder.relation.bias(boxes[-2][:, :related], boxes[-1][:, :related], blocked)
        return torch.stack(logits), torch.stack(boxes[1:])

    def _mixed_queries(self, memory: Tokens) -> tuple[Tensor, Tensor, QueryGroup]:
        """Content (B, Q, C) and start boxes (B, Q, 4) of the queries, and the proposals as predictions."""
        _, proposals = self.proposals(memory)
        index = self.best(proposals, memory)
        boxes = gather_rows(proposals.boxes, index)
        encoder = QueryGroup(
            gather_rows(proposals.logits, index)[None],
            boxes.sigmoid()[None],
            class_agnostic=self.config.proposal_class_agnostic,
        )
        content = self.tgt_embed.weight[: index.shape[1]].expand(len(index), -1, -1)
        return content, boxes.detach().sigmoid(), encoder

    def _split(self, logits: Tensor, boxes: Tensor, noise: DenoisingQueries | None, encoder: QueryGroup) -> Predictions:
        groups: dict[str, QueryGroup] = {}
        if noise is not None:
            first = noise.content.shape[1]
            groups["denoising"] = QueryGroup(
                logits[:, :, :first],
                boxes[:, :, :first],
                pairs=noise.pairs,
                normaliser=float(noise.groups),
                ignored=noise.unused,
            )
            logits, boxes = logits[:, :, first:], boxes[:, :, first:]
        if self.training:
            groups["encoder"] = encoder
        return Predictions(logits, boxes, groups=groups)
