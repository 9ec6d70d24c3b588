"""Conditional DETR: "Conditional DETR for Fast Training Convergence" (Meng et al., ICCV 2021, arXiv 2108.06152), and
DE-Conditional-DETR, its data-efficient form (Wang et al., ECCV 2022).

What changes against DETR: the position of a query in cross-attention is the sine embedding of a **reference point**,
scaled by a function of its content (:func:`conditional_position`); content and position are compared separately
(:mod:`detrkit.nn.conditional_attention`); classes are trained with sigmoid focal loss. DE-Conditional-DETR is DE-DETR
with these layers; its reference follows the refined boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrkit.models.config import DetectorConfig
from detrkit.models.de_detr import DEDETR, DEDETRArchitecture, SparseDecoder
from detrkit.models.detector import MaskHead, build_backbone
from detrkit.models.detr import DETR, Decoder, DETRArchitecture, build_encoder, build_position
from detrkit.nn.conditional_attention import ConditionalCrossAttention, ConditionalSelfAttention
from detrkit.nn.heads import MLP
from detrkit.nn.position import sine_embedding
from detrkit.nn.queries import Block, Decoded, Queries, attention_blocks, within_blocks
from detrkit.nn.tokens import Tokens, joined
from detrkit.nn.transformer import FeedForwardLayer, xavier_
from detrkit.ops.boxes import inverse_sigmoid

__all__ = ["ConditionalDecoder", "SparseConditionalDecoder", "build_conditional_detr", "build_de_conditional_detr"]


class ConditionalDecoderLayer(FeedForwardLayer):
    """Self-attention among the queries, conditional cross-attention, feed-forward block; post-norm."""

    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int, dropout: float, first: bool) -> None:
        super().__init__(dim=dim, ffn_dim=ffn_dim, dropout=dropout, pre_norm=False)
        self.self_attn = ConditionalSelfAttention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.multihead_attn = ConditionalCrossAttention(dim=dim, num_heads=num_heads, dropout=dropout, first=first)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        sine: Tensor,
        keys: Tensor,
        mask: Tensor | None,
        blocks: Sequence[Block],
    ) -> Tensor:
        """content, position and sine (B, Q, C), projected keys and values -> content (B, Q, C)."""
        content = self.residual(content, self.norm1, lambda x: within_blocks(self.self_attn, blocks, x, position))
        cross_attend = self.multihead_attn.attend
        content = self.residual(content, self.norm2, lambda x: cross_attend(x, position, sine, keys, mask))
        return self.residual(content, self.norm3, self.feed_forward)


def conditional_layers(architecture: DETRArchitecture) -> list[ConditionalDecoderLayer]:
    """Build the decoder layers of an architecture.

    Raises:
        ValueError: the architecture has pre-norm layers.
    """
    if architecture.pre_norm:
        raise ValueError("the Conditional DETR family has post-norm layers only: pre_norm must be False")
    return [
        ConditionalDecoderLayer(
            dim=architecture.hidden_dim,
            num_heads=architecture.num_heads,
            ffn_dim=architecture.ffn_dim,
            dropout=architecture.dropout,
            first=index == 0,
        )
        for index in range(architecture.decoder_layers)
    ]


def conditional_position(content: Tensor, reference: Tensor, scale: nn.Module | None) -> Tensor:
    """Conditional spatial query of a layer (paper, section 3.3): sine embedding of the centre times a learned scale.

    content (B, Q, C), reference logits (B, Q, 2 or 4) -> (B, Q, C); scale: None in the first layer.
    """
    features = content.shape[-1] // 2
    x, y = (reference[..., :2].sigmoid() * (2 * math.pi)).unbind(-1)
    sine = torch.cat((sine_embedding(y, features), sine_embedding(x, features)), dim=-1)
    return sine if scale is None else sine * scale(content)


class ConditionalDecoder(Decoder):
    """DETR's decoder with conditional layers, reference points, and positions scaled by content."""

    def __init__(self, layers: Sequence[nn.Module], *, dim: int) -> None:
        super().__init__(layers, dim=dim)
        self.query_scale = MLP(dim, dim, dim, num_layers=2)
        self.ref_point_head = MLP(dim, dim, 2, num_layers=2)

    def forward(
        self, queries: Sequence[Queries], memory: Tokens, class_embed: nn.Module, bbox_embed: nn.Module
    ) -> Decoded:
        """Decode as DETR does; boxes are relative to the reference points."""
        blocks = attention_blocks(queries)
        content = joined([query_set.content for query_set in queries])
        position = joined([query_set.required_position for query_set in queries])
        reference = self.ref_point_head(position).float()
        hidden = []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, ConditionalDecoderLayer)
            keys = layer.multihead_attn.project_memory(memory.content, memory.position)
            sine = conditional_position(content, reference, self.query_scale if index else None)
            content = layer(content, position, sine, keys, memory.padding_mask, blocks)
            hidden.append(self.norm(content))
        states = torch.stack(hidden)
        centre = nn.functional.pad(inverse_sigmoid(reference.sigmoid()), (0, 2))
        boxes = (bbox_embed(states).float() + centre).sigmoid()
        return Decoded(tuple(queries), states, class_embed(states), boxes)


class SparseConditionalDecoder(SparseDecoder):
    """DE-DETR's decoder with conditional layers; it predicts its own reference points."""

    predicts_references = True

    def __init__(self, layers: Sequence[nn.Module], *, architecture: DEDETRArchitecture) -> None:
        super().__init__(layers, architecture=architecture)
        dim = architecture.hidden_dim
        self.query_scale = MLP(dim, dim, dim, num_layers=2)
        self.ref_point_head = MLP(dim, dim, 2, num_layers=2)

    def initial_reference(self, queries: Sequence[Queries]) -> Tensor:
        """Predict reference points (B, Q, 2), as logits."""
        points: Tensor = self.ref_point_head(joined([query_set.required_position for query_set in queries]))
        return points.float()

    def run_layer(
        self,
        index: int,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        keys: Tensor,
        mask: Tensor | None,
        blocks: Sequence[Block],
    ) -> Tensor:
        """Run a conditional layer; its position follows the refined boxes."""
        sine = conditional_position(content, reference, self.query_scale if index else None)
        output: Tensor = self.layers[index](content, position, sine, keys, mask, blocks)
        return output


def build_conditional_detr(config: DetectorConfig[DETRArchitecture], *, mask_head: MaskHead | None = None) -> DETR:
    """Build Conditional DETR from a configuration, randomly initialised: DETR with the conditional decoder."""
    architecture = config.architecture
    backbone, encoder = build_backbone(architecture, num_levels=1), build_encoder(architecture)
    decoder = ConditionalDecoder(conditional_layers(architecture), dim=architecture.hidden_dim)
    xavier_(decoder)
    model = DETR(
        config=config,
        backbone=backbone,
        position=build_position(architecture),
        encoder=encoder,
        decoder=decoder,
        mask_head=mask_head,
    )
    nn.init.constant_(model.class_embed.bias, -math.log(99))
    last = model.bbox_embed.get_submodule("layers.2")
    nn.init.zeros_(last.get_parameter("weight"))
    nn.init.zeros_(last.get_parameter("bias"))
    return model


def build_de_conditional_detr(
    config: DetectorConfig[DEDETRArchitecture], *, mask_head: MaskHead | None = None
) -> DEDETR:
    """Build DE-Conditional-DETR from a configuration, randomly initialised: DE-DETR with the conditional decoder.

    Raises:
        ValueError: ``reference_dim`` is not 2.
    """
    architecture = config.architecture
    if architecture.reference_dim != 2:
        raise ValueError(
            f"DE-Conditional-DETR starts from points: reference_dim must be 2, not {architecture.reference_dim}"
        )
    backbone = build_backbone(architecture, num_levels=min(architecture.num_feature_levels, 3))
    encoder = build_encoder(architecture)
    decoder = SparseConditionalDecoder(conditional_layers(architecture), architecture=architecture)
    xavier_(decoder)
    return DEDETR(
        config=config,
        backbone=backbone,
        position=build_position(architecture),
        encoder=encoder,
        decoder=decoder,
        mask_head=mask_head,
    )
