"""DE-DETR: "Towards Data-Efficient Detection Transformers" (Wang et al., ECCV 2022, arXiv 2203.09507).

What changes against DETR, all of it in :meth:`DEDETR.detect`:

1. **Sparse feature sampling** (eq. 3): from the second decoder layer on, a query attends only to the K x K features
   that RoIAlign takes from its box of the layer before.
2. **Multi-scale** (eq. 4): sampling makes it affordable to read every backbone level; only the stride-32 level goes
   through the encoder.
3. **Boxes relative to an initial point**, refined layer by layer.

DELA-DETR is the same network; its label augmentation is an option of every model
(:mod:`detrkit.losses.label_augmentation`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from detrkit.models.detector import Detector, build_backbone, class_slots
from detrkit.models.detr import Decoder, DETRConfig, build_encoder, build_position
from detrkit.nn.backbone import Backbone, FeatureMap, valid_sizes
from detrkit.nn.heads import MLP
from detrkit.nn.projection import LevelProjection, to_tokens
from detrkit.nn.query_groups import learned_queries, split_groups
from detrkit.nn.transformer import DecoderLayer, Encoder
from detrkit.ops.boxes import cxcywh_to_xyxy, inverse_sigmoid
from detrkit.ops.roi_align import RoIBags, roi_align_bags
from detrkit.structures import Predictions, Target

__all__ = ["DEDETR", "DEDETRConfig"]


@dataclass(frozen=True, kw_only=True)
class DEDETRConfig(DETRConfig):
    """Configuration of DE-DETR.

    num_feature_levels: 1 (stride 32 only), 3 (strides 8, 16, 32) or 4 (and 64) · roi_resolution: K, so that a query
    sees levels · K² keys · roi_aligned: half-pixel aligned RoIAlign, as published · refine_boxes: every layer
    refines the box of the one before, with heads of its own; off: shared heads, every box relative to the initial
    point · reference_dim: 2 (initial centre), 4 (initial box) or 0 (none: boxes come from the query alone, as in DETR).

    sparse_sampling: off, every layer attends to the whole memory as in DETR. With it, ``refine_boxes`` and
    ``reference_dim`` the paper walks from a region-based detector to DETR (Table 1).
    """

    sparse_sampling: bool = True
    num_feature_levels: int = 3
    roi_resolution: int = 4
    roi_sampling_ratio: int = 2
    roi_aligned: bool = True
    refine_boxes: bool = True
    reference_dim: int = 2

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
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
        if self.roi_resolution < 1 or self.roi_sampling_ratio < 1:
            raise ValueError("roi_resolution and roi_sampling_ratio must be at least 1")


class DEDETR(Detector):
    """DE-DETR with modules passed in; :meth:`from_config` builds the published ones."""

    config: DEDETRConfig
    decoder: Any  # DETR's, or another paper's with the same parts
    decoder_type: ClassVar[type[nn.Module]] = Decoder

    def __init__(
        self, *, config: DEDETRConfig, backbone: Backbone, position: nn.Module, encoder: Encoder, decoder: nn.Module
    ) -> None:
        super().__init__(config=config)
        dim = config.hidden_dim
        self.backbone = backbone
        self.position = position
        multi_scale = config.num_feature_levels > 1
        self.input_proj = nn.ModuleList(
            LevelProjection(in_channels=channels, dim=dim, group_norm=multi_scale) for channels in backbone.channels
        )
        if config.num_feature_levels == 4:
            self.input_proj.append(LevelProjection(in_channels=backbone.channels[-1], dim=dim, stride=2))
        self.encoder = encoder
        self.decoder = decoder
        self.query_embed = nn.Embedding(config.groups * config.num_queries, dim)
        if config.reference_dim:
            self.build_reference()
        heads = config.decoder_layers if config.refine_boxes else 1
        self.class_embed = nn.ModuleList(nn.Linear(dim, class_slots(config)) for _ in range(heads))
        self.bbox_embed = nn.ModuleList(MLP(dim, dim, 4, num_layers=3) for _ in range(heads))
        self._initialise_heads()

    def build_reference(self) -> None:
        """The head that says where each query starts."""
        dim = self.config.hidden_dim
        self.ref_point_head = MLP(dim, dim, self.config.reference_dim, num_layers=2)

    def _initialise_heads(self) -> None:
        """Class prior 0.01; boxes start as points of side sigmoid(-2); heads of all layers start alike."""
        first_class, first_box = self.class_embed[0], self.bbox_embed[0]
        last = first_box.get_submodule("layers.2")
        nn.init.constant_(first_class.get_parameter("bias"), -math.log(99))
        nn.init.zeros_(last.get_parameter("weight"))
        nn.init.zeros_(last.get_parameter("bias"))
        for first, heads in ((first_class, self.class_embed), (first_box, self.bbox_embed)):
            for head in heads[1:]:
                head.load_state_dict(first.state_dict())
        nn.init.constant_(last.get_parameter("bias")[2:], -2.0)

    @classmethod
    def from_config(cls, config: DEDETRConfig) -> Self:
        """The whole model of a configuration, randomly initialised."""
        return cls(
            config=config,
            backbone=build_backbone(config, num_levels=min(config.num_feature_levels, 3)),
            position=build_position(config),
            encoder=build_encoder(config),
            decoder=cls.decoder_type(config=config),
        )

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Encoder on stride 32; first decoder layer global, the others on features sampled from their boxes."""
        levels = self._project(self.backbone(images, padding_mask), padding_mask)
        top = min(2, len(levels) - 1)  # the level that the encoder processes
        mask = levels[top].padding_mask.flatten(1)
        positions = [self.position(level.padding_mask).flatten(1, 2) for level in levels]
        contents = [to_tokens(level.tensor) for level in levels]
        contents[top] = self.encoder(contents[top], positions[top], mask)
        all_content, all_positions = torch.cat(contents, dim=1), torch.cat(positions, dim=1)

        sizes = valid_sizes(padding_mask)
        scale = sizes.flip(1).repeat(1, 2)[:, None]  # (B, 1, 4): width, height, width, height of the valid area
        queries = learned_queries(self.query_embed, self.config.num_queries, len(images), training=self.training)
        initial = self.initial_reference(queries)
        content = torch.zeros_like(queries)
        reference = initial
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        for index, layer in enumerate(self.decoder.layers):
            attention = layer.multihead_attn
            everywhere = index == 0 or not self.config.sparse_sampling
            if everywhere:
                sampled = attention.project_memory(contents[top], positions[top])
            else:
                bags = self._sample(levels, cxcywh_to_xyxy(boxes[-1].detach()) * scale, sizes)
                # RoIAlign is linear: project the maps once, then pool keys and values together.
                sampled = bags.pool(attention.project_memory(all_content, all_positions))
            content = self.decode(index, content, queries, reference, sampled, mask if everywhere else None)
            hidden = self.decoder.norm(content)
            head = index if self.config.refine_boxes else 0
            logits.append(self.class_embed[head](hidden))
            offset = self.bbox_embed[head](hidden).float()  # half precision would round boxes to 1/256
            # A centre moves only the centre; sizes then come from the offset alone.
            reference = nn.functional.pad(reference, (0, 4 - reference.shape[-1]))
            boxes.append((offset + reference).sigmoid())
            reference = inverse_sigmoid(boxes[-1].detach()) if self.config.refine_boxes else initial
        return split_groups(torch.stack(logits), torch.stack(boxes), self.config.num_queries)

    def initial_reference(self, queries: Tensor) -> Tensor:
        """Logits of the initial points (or boxes) of the queries: (B, Q, C) -> (B, Q, 0, 2 or 4)."""
        if self.config.reference_dim == 0:
            return queries.new_zeros(*queries.shape[:2], 0)
        return self.ref_point_head(queries).float()

    def decode(
        self, index: int, content: Tensor, queries: Tensor, reference: Tensor, sampled: Tensor, mask: Tensor | None
    ) -> Tensor:
        """One decoder layer: content and queries (B, Q, C), reference logits, projected features -> content."""
        layer: DecoderLayer = self.decoder.layers[index]
        return layer(content, queries, lambda x: layer.multihead_attn.attend(x + queries, sampled, mask))

    def _project(self, maps: list[FeatureMap], padding_mask: Tensor) -> list[FeatureMap]:
        sources = maps if len(self.input_proj) == len(maps) else [*maps, maps[-1]]
        mask_padding = self.config.mask_backbone_padding
        return [
            projection(level, padding_mask, mask_padding=mask_padding)
            for projection, level in zip(self.input_proj, sources, strict=True)
        ]

    def _sample(self, levels: list[FeatureMap], boxes: Tensor, sizes: Tensor) -> RoIBags:
        """Where RoIAlign reads for boxes (B, Q, 4) xyxy in pixels."""
        return roi_align_bags(
            boxes,
            shapes=[(level.tensor.shape[-2], level.tensor.shape[-1]) for level in levels],
            strides=[level.stride for level in levels],
            resolution=self.config.roi_resolution,
            sampling_ratio=self.config.roi_sampling_ratio,
            aligned=self.config.roi_aligned,
            valid_size=sizes if self.config.mask_backbone_padding else None,
        )
