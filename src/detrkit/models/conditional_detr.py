"""Conditional DETR: "Conditional DETR for Fast Training Convergence" (Meng et al., ICCV 2021, arXiv 2108.06152), and
DE-Conditional-DETR, its data-efficient form (Wang et al., ECCV 2022).

What changes against DETR: a query's position in cross-attention is the sine embedding of a **reference point**, scaled
by what its content asks for (:meth:`ConditionalDecoder.position`); content and position are compared apart; classes
are sigmoid focal. DE-Conditional-DETR is DE-DETR with that decoder; its reference follows the refined boxes.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from detrkit.models.de_detr import DEDETR, DEDETRConfig
from detrkit.models.detr import DETR, DETRConfig
from detrkit.nn.backbone import Backbone
from detrkit.nn.conditional_attention import ConditionalCrossAttention, ConditionalSelfAttention
from detrkit.nn.heads import MLP
from detrkit.nn.position import sine_embedding
from detrkit.nn.projection import to_tokens
from detrkit.nn.query_groups import learned_queries, split_groups, within_groups
from detrkit.nn.transformer import Encoder, FeedForwardLayer, xavier_
from detrkit.ops.boxes import inverse_sigmoid
from detrkit.structures import Predictions, Target

__all__ = ["ConditionalDETR", "ConditionalDecoder", "DEConditionalDETR"]


class ConditionalDecoderLayer(FeedForwardLayer):
    """Self-attention among the queries, conditional cross-attention, feed-forward block; post-norm."""

    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int, dropout: float, first: bool, group_size: int) -> None:
        super().__init__(dim=dim, ffn_dim=ffn_dim, dropout=dropout, pre_norm=False)
        self.group_size = group_size
        self.self_attn = ConditionalSelfAttention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.multihead_attn = ConditionalCrossAttention(dim=dim, num_heads=num_heads, dropout=dropout, first=first)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, content: Tensor, queries: Tensor, sine: Tensor, projected: Tensor, mask: Tensor | None) -> Tensor:
        """content, queries and sine (B, Q, C) and projected features -> content (B, Q, C)."""
        content = self.residual(
            content, self.norm1, lambda x: within_groups(self.self_attn, self.group_size, x, queries)
        )
        read = self.multihead_attn.attend
        content = self.residual(content, self.norm2, lambda x: read(x, queries, sine, projected, mask))
        return self.residual(content, self.norm3, self.feed_forward)


class ConditionalDecoder(nn.Module):
    """Layers, the norm that the heads see, the head of the reference points and the scale of their embedding."""

    def __init__(self, *, config: DETRConfig) -> None:
        super().__init__()
        if config.pre_norm:
            raise ValueError("the Conditional DETR family has post-norm layers only: pre_norm must be False")
        dim = config.hidden_dim
        self.layers = nn.ModuleList(
            ConditionalDecoderLayer(
                dim=dim,
                num_heads=config.num_heads,
                ffn_dim=config.ffn_dim,
                dropout=config.dropout,
                first=index == 0,
                group_size=config.num_queries,
            )
            for index in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.query_scale = MLP(dim, dim, dim, num_layers=2)
        self.ref_point_head = MLP(dim, dim, 2, num_layers=2)
        xavier_(self)

    def position(self, index: int, content: Tensor, reference: Tensor) -> Tensor:
        """The conditional spatial query of layer ``index`` (paper, eq. 7): sine of the centre times a learned scale.

        content (B, Q, C), reference logits (B, Q, 2 or 4) -> (B, Q, C); the first layer is not scaled.
        """
        features = content.shape[-1] // 2
        x, y = (reference[..., :2].sigmoid() * (2 * math.pi)).unbind(-1)
        sine = torch.cat((sine_embedding(y, features), sine_embedding(x, features)), dim=-1)
        return sine if index == 0 else sine * self.query_scale(content)


class ConditionalDETR(DETR):
    """Conditional DETR with modules passed in; :meth:`from_config` builds the published ones."""

    decoder: ConditionalDecoder
    decoder_type = ConditionalDecoder

    def __init__(
        self, *, config: DETRConfig, backbone: Backbone, position: nn.Module, encoder: Encoder, decoder: nn.Module
    ) -> None:
        super().__init__(config=config, backbone=backbone, position=position, encoder=encoder, decoder=decoder)
        nn.init.constant_(self.class_embed.bias, -math.log(99))
        last = self.bbox_embed.get_submodule("layers.2")
        nn.init.zeros_(last.get_parameter("weight"))
        nn.init.zeros_(last.get_parameter("bias"))

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Backbone, encoder, conditional decoder, heads; boxes are relative to the reference points."""
        (c5,) = self.backbone(images, padding_mask)
        mask = c5.padding_mask.flatten(1)
        position = self.position(c5.padding_mask).flatten(1, 2)
        memory = self.encoder(to_tokens(self.input_proj(c5.tensor)), position, mask)

        queries = learned_queries(self.query_embed, self.config.num_queries, len(images), training=self.training)
        reference = self.decoder.ref_point_head(queries).float()
        content = torch.zeros_like(queries)
        hidden = []
        for index, layer in enumerate(self.decoder.layers):
            projected = cast(Any, layer.multihead_attn).project_memory(memory, position)
            content = layer(content, queries, self.decoder.position(index, content, reference), projected, mask)
            hidden.append(self.decoder.norm(content))
        states = torch.stack(hidden)
        centre = nn.functional.pad(inverse_sigmoid(reference.sigmoid()), (0, 2))
        boxes = (self.bbox_embed(states).float() + centre).sigmoid()
        return split_groups(self.class_embed(states), boxes, self.config.num_queries)


class DEConditionalDETR(DEDETR):
    """DE-DETR with the decoder of Conditional DETR."""

    decoder: ConditionalDecoder
    decoder_type = ConditionalDecoder

    def __init__(
        self, *, config: DEDETRConfig, backbone: Backbone, position: nn.Module, encoder: Encoder, decoder: nn.Module
    ) -> None:
        if config.reference_dim != 2:
            raise ValueError(
                f"DE-Conditional-DETR starts from points: reference_dim must be 2, not {config.reference_dim}"
            )
        super().__init__(config=config, backbone=backbone, position=position, encoder=encoder, decoder=decoder)

    def build_reference(self) -> None:
        """Nothing to add: the head belongs to the decoder."""

    def initial_reference(self, queries: Tensor) -> Tensor:
        """Logits of the initial points (B, Q, 2)."""
        return self.decoder.ref_point_head(queries).float()

    def decode(
        self, index: int, content: Tensor, queries: Tensor, reference: Tensor, sampled: Tensor, mask: Tensor | None
    ) -> Tensor:
        """One conditional decoder layer whose position follows the refined boxes."""
        sine = self.decoder.position(index, content, reference)
        return self.decoder.layers[index](content, queries, sine, sampled, mask)
