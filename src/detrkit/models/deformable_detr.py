"""Deformable DETR: "Deformable Transformers for End-to-End Object Detection" (Zhu et al., ICLR 2021, arXiv 2010.04159).

What changes against DETR:

1. Attention reads a few sampled points around a reference instead of every token (section 4.1,
   :mod:`detrkit.nn.deformable`), which makes several levels affordable in encoder and decoder.
2. Boxes are relative to the reference and may be refined layer by layer ("+ refine", :class:`DeformableDecoder`).
3. Queries may start from proposals of the encoder ("++ two-stage", section 4.2, :meth:`DeformableDETR.queries`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from detrkit.models.config import Architecture, DetectorConfig
from detrkit.models.detector import Detector, MaskHead, build_backbone
from detrkit.nn.backbone import Backbone, FeatureMap
from detrkit.nn.deformable import (
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    deformable_xavier_,
)
from detrkit.nn.heads import MLP
from detrkit.nn.position import SinePosition, sine_boxes
from detrkit.nn.projection import LevelProjection
from detrkit.nn.proposals import Proposals, anchors, propose
from detrkit.nn.queries import Decoded, Queries, attention_blocks
from detrkit.nn.tokens import Tokens, flatten_levels, joined, on_levels
from detrkit.ops.boxes import inverse_sigmoid
from detrkit.structures import Predictions, QueryGroup, Target

__all__ = ["DeformableArchitecture", "DeformableDETR", "DeformableDecoder", "build_deformable_detr"]


@dataclass(frozen=True, kw_only=True)
class DeformableArchitecture(Architecture):
    """Architecture of Deformable DETR.

    Attributes:
        num_feature_levels: levels that attention reads, of which the finest ``backbone_levels`` come from the backbone
            and each further one from a convolution of stride 2.
        num_points: samples per head and level.
        refine_boxes: every layer refines the box of the one before, with heads of its own.
        two_stage: queries start from the best proposals of the encoder (needs refine_boxes).
        proposal_class_agnostic: the published rule for them, which ranks proposals by the logit of class 0 and trains
            them with every label set to 0; off: the highest logit of any class, and real labels.
        position_offset, position_temperature: of the sine encoding.
        projection_bias: of the convolutions that bring the levels to ``hidden_dim``.
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


class LayerOptions(TypedDict):
    """What encoder and decoder layers are made of."""

    dim: int
    num_heads: int
    num_levels: int
    num_points: int
    ffn_dim: int
    dropout: float


def layer_options(architecture: DeformableArchitecture) -> LayerOptions:
    """What encoder and decoder layers of an architecture are made of."""
    return {
        "dim": architecture.hidden_dim,
        "num_heads": architecture.num_heads,
        "num_levels": architecture.num_feature_levels,
        "num_points": architecture.num_points,
        "ffn_dim": architecture.ffn_dim,
        "dropout": architecture.dropout,
    }


def encoder_layers(architecture: DeformableArchitecture) -> list[DeformableEncoderLayer]:
    """The encoder's layers, randomly initialised."""
    options = layer_options(architecture)
    layers = [DeformableEncoderLayer(**options) for _ in range(architecture.encoder_layers)]
    deformable_xavier_(nn.ModuleList(layers))
    return layers


def decoder_layers(architecture: DeformableArchitecture) -> list[DeformableDecoderLayer]:
    """The decoder's layers, randomly initialised."""
    options = layer_options(architecture)
    layers = [DeformableDecoderLayer(**options) for _ in range(architecture.decoder_layers)]
    deformable_xavier_(nn.ModuleList(layers))
    return layers


def box_head(dim: int) -> MLP:
    """MLP whose last layer starts at zero: boxes start at their reference."""
    head = MLP(dim, dim, 4, num_layers=3)
    last = head.get_submodule("layers.2")
    nn.init.zeros_(last.get_parameter("weight"))
    nn.init.zeros_(last.get_parameter("bias"))
    return head


def class_head(architecture: Architecture) -> nn.Linear:
    """Linear with the prior probability 0.01 for every class."""
    head = nn.Linear(architecture.hidden_dim, architecture.class_slots)
    nn.init.constant_(head.bias, -math.log(99))
    return head


class DeformableDecoder(nn.Module):
    """Layers that read around references; heads belong to the detector.

    eps: of the inverse sigmoid of references.
    """

    def __init__(self, layers: Sequence[DeformableDecoderLayer], *, refine_boxes: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.refine_boxes, self.eps = refine_boxes, eps

    def forward(
        self, queries: Sequence[Queries], memory: Tokens, class_embed: nn.ModuleList, bbox_embed: nn.ModuleList
    ) -> Decoded:
        """Sets of queries with positions and references in [0, 1] -> what all layers made of them."""
        blocks = attention_blocks(queries)
        content = joined([one.content for one in queries])
        position = joined([one.place for one in queries])
        reference = joined([one.start for one in queries])
        hidden: list[Tensor] = []
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            content = layer(content, position, on_levels(reference, memory), memory, blocks)
            head = index if self.refine_boxes else 0
            hidden.append(content)
            logits.append(class_embed[head](content))
            offset = bbox_embed[head](content).float()
            # A point moves only the centre; sizes then come from the offset alone.
            start = nn.functional.pad(inverse_sigmoid(reference, self.eps), (0, 4 - reference.shape[-1]))
            boxes.append((offset + start).sigmoid())
            if self.refine_boxes:
                reference = boxes[-1].detach()
        return Decoded(tuple(queries), torch.stack(hidden), torch.stack(logits), torch.stack(boxes))


class DeformableDETR(Detector):
    """Deformable DETR with modules passed in; :func:`build_deformable_detr` makes the published ones.

    start: the modules that queries start from, by the names that are declared here.
    """

    config: DetectorConfig[DeformableArchitecture]

    # of two-stage detectors
    enc_output: nn.Linear
    enc_output_norm: nn.LayerNorm
    enc_class_embed: nn.Linear
    enc_bbox_embed: MLP
    pos_trans: nn.Linear
    pos_trans_norm: nn.LayerNorm
    # of others
    query_embed: nn.Embedding
    reference_points: nn.Linear

    def __init__(
        self,
        *,
        config: DetectorConfig[DeformableArchitecture],
        backbone: Backbone,
        position: SinePosition,
        input_proj: Sequence[LevelProjection],
        level_embed: Tensor,
        encoder: nn.Module,
        decoder: nn.Module,
        start: Mapping[str, nn.Module],
        class_embed: nn.ModuleList,
        bbox_embed: nn.ModuleList,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__(config=config, mask_head=mask_head)
        self.backbone = backbone
        self.position = position
        self.input_proj = nn.ModuleList(input_proj)
        self.level_embed = nn.Parameter(level_embed)
        self.encoder = encoder
        self.decoder = decoder
        for name, module in start.items():
            self.add_module(name, module)
        self.class_embed = class_embed
        self.bbox_embed = bbox_embed

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Encoder over all levels; queries from embeddings or proposals; decoder around their references."""
        maps = self.backbone(images, padding_mask)
        memory: Tokens = self.encoder(self.tokens(maps, padding_mask))
        queries, proposals = self.queries(memory)
        decoded = self.decoder([queries], memory, self.class_embed, self.bbox_embed)
        return self.predictions(decoded, memory, maps, proposals)

    def tokens(self, maps: Sequence[FeatureMap], padding_mask: Tensor) -> Tokens:
        """The cells of all levels, projected to the width of the transformer."""
        maps = maps[-self.config.architecture.backbone_levels :]
        levels: list[FeatureMap] = []
        for index, projection in enumerate(self.input_proj):
            # the first extra level reads the raw last map, further ones the level before
            source = maps[min(index, len(maps) - 1)] if index <= len(maps) else levels[-1]
            mask_padding = self.config.architecture.mask_backbone_padding
            levels.append(projection(source, padding_mask, mask_padding=mask_padding))
        positions = [self.position(level.padding_mask) for level in levels]
        return flatten_levels(levels, positions, self.level_embed)

    def queries(self, memory: Tokens) -> tuple[Queries, dict[str, QueryGroup]]:
        """The queries, and the proposals they come from as predictions."""
        if not self.config.architecture.two_stage:
            batch = memory.content.shape[0]
            position, content = self.query_embed.weight.expand(batch, -1, -1).chunk(2, dim=-1)
            reference = self.reference_points(position).float().sigmoid()
            return Queries(content=content, position=position, reference=reference), {}
        proposals = Proposals.of(*self.candidates(memory), self.enc_class_embed, self.enc_bbox_embed)
        best = self.best(proposals, memory, self.config.architecture.num_queries)
        reference = proposals.take(best).reference()
        content, position = self.from_boxes(sine_boxes(reference, self.config.architecture.hidden_dim // 2))
        encoder = proposals.group(class_agnostic=self.config.architecture.proposal_class_agnostic)
        return Queries(content=content, position=position, reference=reference), {"encoder": encoder}

    def candidates(self, memory: Tokens) -> tuple[Tensor, Tensor]:
        """Features (B, S, C) of the tokens that can propose, and the anchors (B, S, 4), as logits, they start from."""
        start, usable = anchors(memory)
        return self.features(memory.content, usable), start

    def features(self, content: Tensor, usable: Tensor) -> Tensor:
        """What the heads of proposals read of tokens (B, S, C); of those that are not usable (B, S) nothing."""
        features: Tensor = self.enc_output_norm(self.enc_output(content * usable[..., None]))
        return features

    def best(self, proposals: Proposals, memory: Tokens, number: int) -> Tensor:
        """Tokens (B, Q) of the ``number`` best proposals, which become queries."""
        architecture = self.config.architecture
        logits = proposals.logits
        scores = logits[..., 0] if architecture.proposal_class_agnostic else logits.amax(-1)
        # one image must not change with the padding that the rest of a batch brings
        excluded = memory.padding_mask if architecture.mask_backbone_padding else None
        return propose(scores, number, excluded)

    def from_boxes(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Content and position (B, Q, C) of queries from the sine embedding (B, Q, 2C) of their boxes."""
        position, content = self.pos_trans_norm(self.pos_trans(embedded)).chunk(2, dim=-1)
        return content, position


class Trunk(TypedDict):
    """What comes before the transformer, see :class:`DeformableDETR`."""

    backbone: Backbone
    position: SinePosition


class Neck(TypedDict):
    """What makes tokens of the maps of the backbone, see :class:`DeformableDETR`."""

    input_proj: list[LevelProjection]
    level_embed: Tensor


class Heads(TypedDict):
    """What reads the states of the queries, see :class:`DeformableDETR`."""

    class_embed: nn.ModuleList
    bbox_embed: nn.ModuleList


def build_trunk(architecture: DeformableArchitecture, position: type[SinePosition] = SinePosition) -> Trunk:
    """Backbone and position encoding; the backbone randomly initialised."""
    encoding = position(
        dim=architecture.hidden_dim,
        offset=architecture.position_offset,
        temperature=architecture.position_temperature,
    )
    return {"backbone": build_backbone(architecture, architecture.backbone_levels), "position": encoding}


def build_neck(architecture: DeformableArchitecture, backbone: Backbone) -> Neck:
    """1x1 for every backbone level; stride 2 from the raw last one, then from the projection before."""
    dim, bias = architecture.hidden_dim, architecture.projection_bias
    channels = backbone.channels[-architecture.backbone_levels :]
    projections = [LevelProjection(in_channels=width, dim=dim, bias=bias) for width in channels]
    for extra in range(architecture.num_feature_levels - len(channels)):
        width = dim if extra else channels[-1]
        projections.append(LevelProjection(in_channels=width, dim=dim, stride=2, bias=bias))
    for projection in projections:
        nn.init.xavier_uniform_(projection.conv.weight)
        if projection.conv.bias is not None:
            nn.init.zeros_(projection.conv.bias)
    return {"input_proj": projections, "level_embed": torch.randn(architecture.num_feature_levels, dim)}


def proposal_heads(architecture: DeformableArchitecture) -> dict[str, nn.Module]:
    """The heads with which every token of the memory proposes a box."""
    dim = architecture.hidden_dim
    enc_output = nn.Linear(dim, dim)
    nn.init.xavier_uniform_(enc_output.weight)
    return {
        "enc_output": enc_output,
        "enc_output_norm": nn.LayerNorm(dim),
        "enc_class_embed": class_head(architecture),
        "enc_bbox_embed": box_head(dim),
    }


def build_heads(architecture: DeformableArchitecture, start: Mapping[str, nn.Module]) -> Heads:
    """One class and one box head for all layers, or with refinement one of each per layer; those of proposals start
    as they do."""
    count = architecture.decoder_layers if architecture.refine_boxes else 1
    class_embed = nn.ModuleList(class_head(architecture) for _ in range(count))
    bbox_embed = nn.ModuleList(box_head(architecture.hidden_dim) for _ in range(count))
    for heads in (class_embed, bbox_embed):
        for head in heads[1:]:
            head.load_state_dict(heads[0].state_dict())
    if architecture.two_stage:
        start["enc_class_embed"].load_state_dict(class_embed[0].state_dict())
        start["enc_bbox_embed"].load_state_dict(bbox_embed[0].state_dict())
    else:
        nn.init.constant_(bbox_embed[0].get_parameter("layers.2.bias")[2:], -2.0)
    return {"class_embed": class_embed, "bbox_embed": bbox_embed}


def _start(architecture: DeformableArchitecture) -> dict[str, nn.Module]:
    """What queries start from: proposals and a map of their boxes, or learned embeddings and points."""
    dim = architecture.hidden_dim
    if architecture.two_stage:
        heads = proposal_heads(architecture)
        pos_trans = nn.Linear(2 * dim, 2 * dim)
        deformable_xavier_(pos_trans)
        return {**heads, "pos_trans": pos_trans, "pos_trans_norm": nn.LayerNorm(2 * dim)}
    query_embed = nn.Embedding(architecture.num_queries, 2 * dim)
    reference_points = nn.Linear(dim, 2)
    nn.init.xavier_uniform_(reference_points.weight)
    nn.init.zeros_(reference_points.bias)
    return {"query_embed": query_embed, "reference_points": reference_points}


def build_deformable_detr(
    config: DetectorConfig[DeformableArchitecture], *, mask_head: MaskHead | None = None
) -> DeformableDETR:
    """Deformable DETR of a configuration, randomly initialised."""
    architecture = config.architecture
    decoder = DeformableDecoder(decoder_layers(architecture), refine_boxes=architecture.refine_boxes)
    trunk = build_trunk(architecture)
    encoder = DeformableEncoder(encoder_layers(architecture))
    neck = build_neck(architecture, trunk["backbone"])
    start = _start(architecture)
    heads = build_heads(architecture, start)
    return DeformableDETR(
        config=config, **trunk, **neck, encoder=encoder, decoder=decoder, start=start, **heads, mask_head=mask_head
    )
