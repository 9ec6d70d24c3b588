"""Deformable DETR: "Deformable Transformers for End-to-End Object Detection" (Zhu et al., ICLR 2021, arXiv 2010.04159).

What changes against DETR: attention reads a few sampled points around a reference instead of every token, which makes
several levels affordable in encoder and decoder (section 4.1); boxes are relative to the reference, may be refined
layer by layer ("+ refine") and may start from proposals of the encoder ("++ two-stage", section 4.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from detrkit.models.config import DetectorConfig
from detrkit.models.detector import Detector, build_backbone, class_slots
from detrkit.nn.backbone import Backbone, FeatureMap
from detrkit.nn.deformable import (
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    Tokens,
    deformable_xavier_,
    flatten_levels,
    on_levels,
)
from detrkit.nn.heads import MLP
from detrkit.nn.position import SinePosition, sine_boxes
from detrkit.nn.projection import LevelProjection
from detrkit.nn.proposals import Proposals, anchors, gather_rows, propose
from detrkit.ops.boxes import inverse_sigmoid
from detrkit.structures import Predictions, QueryGroup, Target

__all__ = ["DeformableDETR", "DeformableDETRConfig", "DeformableDecoder"]


@dataclass(frozen=True, kw_only=True)
class DeformableDETRConfig(DetectorConfig):
    """Configuration of Deformable DETR.

    num_feature_levels: levels that attention reads, of which the finest ``backbone_levels`` come from the backbone and
    each further one from a convolution of stride 2 · num_points: samples a head and level · refine_boxes: every layer
    refines the box of the one before, with heads of its own · two_stage: queries start from the best proposals of the
    encoder (needs refine_boxes) · proposal_class_agnostic: the published rule for them, which ranks proposals by the
    logit of class 0 and trains them with every label set to 0; off: the highest logit of any class, and real labels ·
    position_offset, position_temperature: of the sine encoding · projection_bias: of the convolutions that bring the
    levels to ``hidden_dim``.
    """

    ffn_dim: int = 1024
    num_feature_levels: int = 4
    backbone_levels: int = 3
    num_points: int = 4
    refine_boxes: bool = False
    two_stage: bool = False
    proposal_class_agnostic: bool = True
    position_offset: float = -0.5
    position_temperature: float = 10000.0
    projection_bias: bool = True
    relation_detr_start: ClassVar[bool] = False  # weights start as in the Relation-DETR repository

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
        super().__post_init__()
        if not 1 <= self.backbone_levels <= min(4, self.num_feature_levels):
            raise ValueError(
                f"backbone_levels must be in 1..4 and at most num_feature_levels ({self.num_feature_levels}), "
                f"got {self.backbone_levels}"
            )
        if self.two_stage and not self.refine_boxes:
            raise ValueError("two_stage refines the proposals: it needs refine_boxes=True")
        if self.two_stage and self.classification != "focal":
            raise ValueError(
                "two_stage ranks proposals by the logits of classes, so there must be no no-object among them: "
                f"classification must be 'focal', got {self.classification!r}"
            )


class DeformableDecoder(nn.Module):
    """The decoder layers; heads belong to the detector."""

    def __init__(self, layers: list[DeformableDecoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


def layer_options(config: DeformableDETRConfig) -> dict[str, Any]:
    """What encoder and decoder layers are made of."""
    return {
        "dim": config.hidden_dim,
        "num_heads": config.num_heads,
        "num_levels": config.num_feature_levels,
        "num_points": config.num_points,
        "ffn_dim": config.ffn_dim,
        "dropout": config.dropout,
    }


def box_head(dim: int) -> MLP:
    """MLP whose last layer starts at zero: boxes start at their reference."""
    head = MLP(dim, dim, 4, num_layers=3)
    last = head.get_submodule("layers.2")
    nn.init.zeros_(last.get_parameter("weight"))
    nn.init.zeros_(last.get_parameter("bias"))
    return head


def xavier_heads_(model: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for the layers of every MLP; the last one of box heads stays at zero."""
    for name, module in model.named_modules():
        if isinstance(module, MLP):
            for layer in module.layers:
                nn.init.xavier_uniform_(layer.get_parameter("weight"))
                nn.init.zeros_(layer.get_parameter("bias"))
            if "bbox_embed" in name:
                nn.init.zeros_(module.layers[-1].get_parameter("weight"))


def class_head(config: DetectorConfig, dim: int) -> nn.Linear:
    """Linear with the prior probability 0.01 for every class."""
    head = nn.Linear(dim, class_slots(config))
    nn.init.constant_(head.bias, -math.log(99))
    return head


class DeformableDETR(Detector):
    """Deformable DETR with modules passed in; :meth:`from_config` builds the published ones."""

    config: DeformableDETRConfig
    eps = 1e-5  # of the inverse sigmoid of references
    position_encoding: type[nn.Module] = SinePosition  # of a token's place on its level

    def __init__(
        self,
        *,
        config: DeformableDETRConfig,
        backbone: Backbone,
        position: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
    ) -> None:
        super().__init__(config=config)
        dim = config.hidden_dim
        self.backbone = backbone
        self.position = position
        self.input_proj = nn.ModuleList(self._projections())
        self.level_embed = nn.Parameter(torch.randn(config.num_feature_levels, dim))
        self.encoder: Any = encoder
        self.decoder: Any = decoder
        self._build_queries()
        self._build_heads()
        if config.relation_detr_start:
            xavier_heads_(self)

    def _projections(self) -> list[LevelProjection]:
        """1x1 for every backbone level; stride 2 from the raw last one, then from the projection before."""
        dim, channels = self.config.hidden_dim, self.backbone.channels
        bias = self.config.projection_bias
        projections = [LevelProjection(in_channels=width, dim=dim, bias=bias) for width in channels]
        for extra in range(self.config.num_feature_levels - len(channels)):
            width = dim if extra else channels[-1]
            projections.append(LevelProjection(in_channels=width, dim=dim, stride=2, bias=bias))
        for projection in projections:
            nn.init.xavier_uniform_(projection.conv.weight)
            if projection.conv.bias is not None:
                nn.init.zeros_(projection.conv.bias)
        return projections

    def _build_queries(self) -> None:
        """Learned queries and their reference points, or what turns proposals into queries."""
        dim = self.config.hidden_dim
        if self.config.two_stage:
            self._build_proposals()
            self.pos_trans = nn.Linear(2 * dim, 2 * dim)
            self.pos_trans_norm = nn.LayerNorm(2 * dim)
            deformable_xavier_(self.pos_trans)
        else:
            self.query_embed = nn.Embedding(self.config.num_queries, 2 * dim)
            self.reference_points = nn.Linear(dim, 2)
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)

    def _build_proposals(self) -> None:
        """The head of the encoder's proposals."""
        dim = self.config.hidden_dim
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.enc_output.weight)
        self.enc_class_embed = class_head(self.config, dim)
        self.enc_bbox_embed = box_head(dim)

    def _build_heads(self) -> None:
        """One class and one box head for all layers, or with refinement one of each for every layer, all alike."""
        config, dim = self.config, self.config.hidden_dim
        count = config.decoder_layers if config.refine_boxes else 1
        self.class_embed = nn.ModuleList(class_head(config, dim) for _ in range(count))
        self.bbox_embed = nn.ModuleList(box_head(dim) for _ in range(count))
        for heads in (self.class_embed, self.bbox_embed):
            for head in heads[1:]:
                head.load_state_dict(heads[0].state_dict())
        if config.two_stage:
            self.enc_class_embed.load_state_dict(self.class_embed[0].state_dict())
            self.enc_bbox_embed.load_state_dict(self.bbox_embed[0].state_dict())
        else:
            nn.init.constant_(self.bbox_embed[0].get_parameter("layers.2.bias")[2:], -2.0)

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The whole model of a configuration, randomly initialised."""
        layer = layer_options(config)
        decoder = DeformableDecoder([DeformableDecoderLayer(**layer) for _ in range(config.decoder_layers)])
        deformable_xavier_(decoder)
        return cls(
            config=config,
            backbone=build_backbone(config, num_levels=config.backbone_levels),
            position=cls.position_encoding(
                dim=config.hidden_dim, offset=config.position_offset, temperature=config.position_temperature
            ),
            encoder=cls.build_encoder(config),
            decoder=decoder,
        )

    @staticmethod
    def build_encoder(config: Any) -> nn.Module:
        """The encoder of a configuration, randomly initialised."""
        layer = layer_options(config)
        encoder = DeformableEncoder([DeformableEncoderLayer(**layer) for _ in range(config.encoder_layers)])
        deformable_xavier_(encoder)
        return encoder

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Encoder over all levels; queries from embeddings or proposals; decoder around their references."""
        memory = self.encode(images, padding_mask)
        groups: dict[str, QueryGroup] = {}
        if self.config.two_stage:
            content, position, reference, groups = self._queries_from_proposals(memory)
        else:
            position, content = self.query_embed.weight.expand(len(images), -1, -1).chunk(2, dim=-1)
            reference = self.reference_points(position).float().sigmoid()

        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        for index, layer in enumerate(self.decoder.layers):
            content, _ = layer(content, position, on_levels(reference, memory), memory)
            head = index if self.config.refine_boxes else 0
            logits.append(self.class_embed[head](content))
            offset = self.bbox_embed[head](content).float()
            # A point moves only the centre; sizes then come from the offset alone.
            start = nn.functional.pad(inverse_sigmoid(reference, self.eps), (0, 4 - reference.shape[-1]))
            boxes.append((offset + start).sigmoid())
            if self.config.refine_boxes:
                reference = boxes[-1].detach()
        return Predictions(torch.stack(logits), torch.stack(boxes), groups=groups if self.training else {})

    def encode(self, images: Tensor, padding_mask: Tensor) -> Tokens:
        """The memory: all levels through the encoder."""
        memory: Tokens = self.encoder(self.tokens(images, padding_mask))
        return memory

    def tokens(self, images: Tensor, padding_mask: Tensor) -> Tokens:
        """The cells of all levels, projected to the width of the transformer."""
        levels = self._project(self.backbone(images, padding_mask), padding_mask)
        positions = [self.position(level.padding_mask) for level in levels]
        return flatten_levels(levels, positions, self.level_embed)

    def _project(self, maps: list[FeatureMap], padding_mask: Tensor) -> list[FeatureMap]:
        levels: list[FeatureMap] = []
        for index, projection in enumerate(self.input_proj):
            # the first extra level reads the raw last map, further ones the level before
            source = maps[min(index, len(maps) - 1)] if index <= len(maps) else levels[-1]
            levels.append(projection(source, padding_mask, mask_padding=self.config.mask_backbone_padding))
        return levels

    def proposals(self, memory: Tokens) -> tuple[Tensor, Proposals]:
        """Features (B, S, C) of the tokens that can propose, and what they propose."""
        start, usable = anchors(memory)
        features = self.features(memory.content, usable)
        return features, Proposals(self.enc_class_embed(features), self.enc_bbox_embed(features).float() + start)

    def features(self, content: Tensor, usable: Tensor) -> Tensor:
        """What is told from tokens (B, S, C), of those that are usable (B, S)."""
        features: Tensor = self.enc_output_norm(self.enc_output(content * usable[..., None]))
        return features

    def best(self, proposals: Proposals, memory: Tokens, number: int) -> Tensor:
        """Tokens (B, Q) of the ``number`` best proposals, which become queries."""
        logits = proposals.logits
        scores = logits[..., 0] if self.config.proposal_class_agnostic else logits.amax(-1)
        # one image must not change with the padding that the rest of a batch brings
        excluded = memory.padding_mask if self.config.mask_backbone_padding else None
        return propose(scores, number, excluded)

    def _queries_from_proposals(self, memory: Tokens) -> tuple[Tensor, Tensor, Tensor, dict[str, QueryGroup]]:
        _, proposals = self.proposals(memory)
        best = self.best(proposals, memory, self.config.num_queries)
        reference = gather_rows(proposals.boxes, best).detach().sigmoid()
        content, position = self._from_boxes(sine_boxes(reference, self.config.hidden_dim // 2))
        encoder = QueryGroup(
            proposals.logits[None],
            proposals.boxes.sigmoid()[None],
            class_agnostic=self.config.proposal_class_agnostic,
        )
        return content, position, reference, {"encoder": encoder}

    def _from_boxes(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Content and position (B, Q, C) of queries from the sine embedding (B, Q, 2C) of their boxes."""
        position, content = self.pos_trans_norm(self.pos_trans(embedded)).chunk(2, dim=-1)
        return content, position
