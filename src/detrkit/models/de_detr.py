"""DE-DETR: "Towards Data-Efficient Detection Transformers" (Wang et al., ECCV 2022, arXiv 2203.09507).

What changes against DETR:

1. **Sparse feature sampling** (eq. 3): from the second decoder layer on, a query attends only to the K x K features
   that RoIAlign takes from its box of the layer before (:meth:`SparseDecoder.sample_keys`).
2. **Multi-scale** (eq. 4): sampling makes it affordable to read every backbone level; only the stride-32 level goes
   through the encoder (:meth:`DEDETR.encode`).
3. **Boxes relative to an initial point**, refined layer by layer (:meth:`SparseDecoder.forward`).

DELA-DETR is the same network; its label augmentation is an option of every model
(:mod:`detrkit.losses.label_augmentation`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from detrkit.models.config import DetectorConfig
from detrkit.models.detector import Detector, MaskHead, build_backbone
from detrkit.models.detr import Decoder, DETRArchitecture, build_encoder, build_position, decoder_layers
from detrkit.nn.attention import ProjectsMemory
from detrkit.nn.backbone import Backbone, FeatureMap
from detrkit.nn.backbone.padding import valid_sizes
from detrkit.nn.heads import MLP
from detrkit.nn.position import LearnedPosition, SinePosition
from detrkit.nn.projection import LevelProjection
from detrkit.nn.queries import Block, Decoded, Queries, attention_blocks, query_groups
from detrkit.nn.tokens import Tokens, flatten_levels, joined
from detrkit.nn.transformer import DecoderLayer, Encoder, xavier_
from detrkit.ops.boxes import cxcywh_to_xyxy, inverse_sigmoid
from detrkit.ops.roi_align import roi_align
from detrkit.ranges import Count, CountOrZero, Few
from detrkit.structures import Predictions

__all__ = ["DEDETR", "DEDETRArchitecture", "SparseDecoder", "build_de_detr"]


@dataclass(frozen=True, kw_only=True)
class DEDETRArchitecture(DETRArchitecture):
    """Architecture of DE-DETR.

    ``sparse_sampling``, ``refine_boxes`` and ``reference_dim`` are the paper's steps from a region-based detector to
    DETR (table 1).

    Attributes:
        sparse_sampling: sample keys from boxes; off: attend to the whole memory as in DETR.
        num_feature_levels: 1 (stride 32), 3 (strides 8, 16, 32) or 4 (strides 8 to 64).
        roi_resolution: K; a query attends to levels · K² keys.
        roi_sampling_ratio: samples per side of a bin.
        roi_aligned: half-pixel aligned RoIAlign, as published.
        refine_boxes: every layer refines the box of the layer before and has its own heads; off: shared heads, boxes
            relative to the initial point.
        reference_dim: 2 (initial centre), 4 (initial box) or 0 (none: boxes depend on the query alone, as in DETR).
    """

    sparse_sampling: bool = True
    num_feature_levels: Count = 3
    roi_resolution: Few = 4
    roi_sampling_ratio: Few = 2
    roi_aligned: bool = True
    refine_boxes: bool = True
    reference_dim: CountOrZero = 2

    def __post_init__(self) -> None:
        """Check values; raise ValueError naming the field."""
        super().__post_init__()
        if self.num_feature_levels not in (1, 3, 4):
            raise ValueError(f"num_feature_levels must be 1, 3 or 4, got {self.num_feature_levels}")
        if self.num_feature_levels != 1 and not self.sparse_sampling:
            raise ValueError(
                f"without sparse_sampling only the stride-32 level is read: num_feature_levels must be 1, "
                f"got {self.num_feature_levels}"
            )
        if self.reference_dim not in (0, 2, 4):
            raise ValueError(f"reference_dim must be 0 (none), 2 (centre) or 4 (box), got {self.reference_dim}")


@dataclass(frozen=True)
class LevelTokens(Tokens):
    """Tokens of several levels, one of which went through the encoder."""

    strides: tuple[int, ...] = field(kw_only=True)
    """Pixels per cell, one number per level."""

    encoded: Tokens = field(kw_only=True)
    """The tokens of the encoded level alone."""

    sizes_px: Tensor = field(kw_only=True)
    """(B, 2) int64, height and width of the valid area in pixels."""


class SparseDecoder(Decoder):
    """DETR's layers; all but the first attend to features sampled from the boxes of the layer before."""

    predicts_references = False  # the detector predicts them

    def __init__(self, layers: Sequence[nn.Module], *, architecture: DEDETRArchitecture) -> None:
        super().__init__(layers, dim=architecture.hidden_dim)
        self.architecture = architecture

    def forward(
        self, queries: Sequence[Queries], memory: Tokens, class_embed: nn.Module, bbox_embed: nn.Module
    ) -> Decoded:
        """Decode as DETR does; there is one head per layer or one for all, and references are logits."""
        assert isinstance(memory, LevelTokens)
        assert isinstance(class_embed, nn.ModuleList)
        assert isinstance(bbox_embed, nn.ModuleList)
        blocks = attention_blocks(queries)
        content = joined([query_set.content for query_set in queries])
        position = joined([query_set.required_position for query_set in queries])
        initial = reference = self.initial_reference(queries)
        refined = self.architecture.refine_boxes
        hidden: list[Tensor] = []
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            keys, mask = self.sample_keys(layer, memory, boxes)
            content = self.run_layer(index, content, position, reference, keys, mask, blocks)
            hidden.append(self.norm(content))
            head = index if refined else 0
            logits.append(class_embed[head](hidden[-1]))
            offset = bbox_embed[head](hidden[-1]).float()  # half precision would round boxes to 1/256
            # A centre moves only the centre; sizes then come from the offset alone.
            reference = nn.functional.pad(reference, (0, 4 - reference.shape[-1]))
            boxes.append((offset + reference).sigmoid())
            reference = inverse_sigmoid(boxes[-1].detach()) if refined else initial
        return Decoded(tuple(queries), torch.stack(hidden), torch.stack(logits), torch.stack(boxes))

    def initial_reference(self, queries: Sequence[Queries]) -> Tensor:
        """Return initial points (B, Q, 2) or boxes (B, Q, 4) as logits, or an empty tensor (B, Q, 0)."""
        if any(query_set.reference is None for query_set in queries):
            position = joined([query_set.required_position for query_set in queries])
            return position.new_zeros(*position.shape[:2], 0)
        return joined([query_set.required_reference for query_set in queries])

    def sample_keys(
        self, layer: nn.Module, memory: LevelTokens, boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Return projected keys and values for a layer, with a padding mask if they are the whole encoded level."""
        attention = layer.get_submodule("multihead_attn")
        assert isinstance(attention, ProjectsMemory)
        if not boxes or not self.architecture.sparse_sampling:
            encoded = memory.encoded
            return attention.project_memory(encoded.content, encoded.position), encoded.padding_mask
        scale = memory.sizes_px.flip(1).repeat(1, 2)[:, None]  # (B, 1, 4): width, height, width, height
        # RoIAlign is linear: project the maps once, then pool keys and values together.
        pooled = roi_align(
            attention.project_memory(memory.content, memory.position),
            cxcywh_to_xyxy(boxes[-1].detach()) * scale,
            shapes=list(memory.shapes),
            strides=list(memory.strides),
            resolution=self.architecture.roi_resolution,
            sampling_ratio=self.architecture.roi_sampling_ratio,
            aligned=self.architecture.roi_aligned,
            valid_size=memory.sizes_px if self.architecture.mask_backbone_padding else None,
        )
        return pooled, None

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
        """Run one layer: content and position (B, Q, C), reference logits, projected keys and values -> content."""
        layer = self.layers[index]
        assert isinstance(layer, DecoderLayer)
        attend = layer.multihead_attn.attend
        output: Tensor = layer(content, position, lambda x: attend(x + position, keys, mask), blocks)
        return output


class DEDETR(Detector):
    """DE-DETR with backbone, encoder and decoder passed in; :func:`build_de_detr` builds the published ones."""

    config: DetectorConfig[DEDETRArchitecture]

    def __init__(
        self,
        *,
        config: DetectorConfig[DEDETRArchitecture],
        backbone: Backbone,
        position: SinePosition | LearnedPosition,
        encoder: Encoder,
        decoder: SparseDecoder,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__(config=config, mask_head=mask_head)
        architecture = config.architecture
        dim, levels = architecture.hidden_dim, architecture.num_feature_levels
        self.backbone = backbone
        self.position = position
        self.input_proj = nn.ModuleList(
            LevelProjection(in_channels=channels, dim=dim, group_norm=levels > 1)
            for channels in backbone.channels[architecture.finer_maps :]
        )
        if levels == 4:
            self.input_proj.append(LevelProjection(in_channels=backbone.channels[-1], dim=dim, stride=2))
        self.encoder = encoder
        self.decoder = decoder
        self.query_embed = nn.Embedding(architecture.groups * architecture.num_queries, dim)
        self.ref_point_head: MLP | None = None
        if architecture.reference_dim and not decoder.predicts_references:
            self.ref_point_head = MLP(dim, dim, architecture.reference_dim, num_layers=2)
        heads = architecture.decoder_layers if architecture.refine_boxes else 1
        self.class_embed = nn.ModuleList(nn.Linear(dim, architecture.class_slots) for _ in range(heads))
        self.bbox_embed = nn.ModuleList(MLP(dim, dim, 4, num_layers=3) for _ in range(heads))
        self._initialise_heads()

    def _initialise_heads(self) -> None:
        """Set class prior 0.01 and box sides sigmoid(-2); the heads of all layers get equal weights."""
        first_class, first_box = self.class_embed[0], self.bbox_embed[0]
        last = first_box.get_submodule("layers.2")
        nn.init.constant_(first_class.get_parameter("bias"), -math.log(99))
        nn.init.zeros_(last.get_parameter("weight"))
        nn.init.zeros_(last.get_parameter("bias"))
        for first, heads in ((first_class, self.class_embed), (first_box, self.bbox_embed)):
            for head in heads[1:]:
                head.load_state_dict(first.state_dict())
        # after the copies: with refinement, further layers start from the sides that the first has set
        nn.init.constant_(last.get_parameter("bias")[2:], -2.0)

    def network(self, images: Tensor, padding_mask: Tensor, denoising: Sequence[Queries]) -> Predictions:
        """Encode stride 32; the first decoder layer attends globally, further ones to features sampled from boxes."""
        maps = self.backbone(images, padding_mask)
        memory = self.encode(maps, padding_mask)
        number = self.config.architecture.num_queries
        queries = query_groups(self.query_embed, number, images.shape[0], training=self.training)
        if self.ref_point_head is not None:
            queries = [
                replace(query_set, reference=self.ref_point_head(query_set.required_position).float())
                for query_set in queries
            ]
        decoded = self.decoder(queries, memory, self.class_embed, self.bbox_embed)
        return self.predictions(decoded, memory, maps)

    def encode(self, maps: Sequence[FeatureMap], padding_mask: Tensor) -> LevelTokens:
        """Return the tokens of all levels after encoding the level of stride 32, or the only level."""
        levels = self._project(maps, padding_mask)
        parts = [flatten_levels([level], self.position) for level in levels]
        top = min(2, len(levels) - 1)
        encoded = self.encoder(parts[top].content, parts[top].position, parts[top].padding_mask)
        parts[top] = replace(parts[top], content=encoded)
        return LevelTokens(
            content=joined([part.content for part in parts]),
            position=joined([part.position for part in parts]),
            padding_mask=joined([part.padding_mask for part in parts]),
            shapes=tuple(shape for part in parts for shape in part.shapes),
            valid_cells=joined([part.valid_cells for part in parts]),
            strides=tuple(level.stride for level in levels),
            encoded=parts[top],
            sizes_px=valid_sizes(padding_mask),
        )

    def _project(self, maps: Sequence[FeatureMap], padding_mask: Tensor) -> list[FeatureMap]:
        """Project the detector's levels to ``hidden_dim`` channels; a fourth one has stride 64."""
        architecture = self.config.architecture
        sources = maps[architecture.finer_maps :]
        if len(sources) < len(self.input_proj):
            sources = [*sources, maps[-1]]  # stride 64 is made of C5 too
        mask_padding = architecture.mask_backbone_padding
        return [
            projection(level, padding_mask, mask_padding=mask_padding)
            for projection, level in zip(self.input_proj, sources, strict=True)
        ]


def build_de_detr(config: DetectorConfig[DEDETRArchitecture], *, mask_head: MaskHead | None = None) -> DEDETR:
    """Build DE-DETR from a configuration, randomly initialised."""
    architecture = config.architecture
    backbone = build_backbone(architecture, num_levels=min(architecture.num_feature_levels, 3))
    encoder = build_encoder(architecture)
    decoder = SparseDecoder(decoder_layers(architecture), architecture=architecture)
    xavier_(decoder)
    return DEDETR(
        config=config,
        backbone=backbone,
        position=build_position(architecture),
        encoder=encoder,
        decoder=decoder,
        mask_head=mask_head,
    )
