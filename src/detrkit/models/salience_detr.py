"""Salience-DETR: "Enhancing Detection Transformer with Hierarchical Salience Filtering Refinement" (Hou et al., CVPR
2024, arXiv 2403.16131).

What changes against DINO:

1. **Scale-independent salience supervision** (:meth:`SalienceDETR.score`, :mod:`detrkit.nn.salience.salience`): how
   well a token shows an object is predicted from the coarsest level down; the target does not depend on the object's
   size.
2. **Hierarchical query filtering** (:meth:`SalienceDETR.refine`, :mod:`detrkit.nn.salience.encoder`): the encoder
   refines the most salient tokens of each level, fewer in every layer; the best attend to each other first.
3. Query refinement for the two-stage start:

   * a **background embedding** for all tokens that the last layer does not refine;
   * **cross-level token fusion** (:mod:`detrkit.nn.salience.plux_pyramid`): a convolutional pyramid over the memory;
   * **redundancy removal** (:meth:`SalienceDETR.best`, :mod:`detrkit.nn.salience.grid_suppression`): only one of
     several neighbouring tokens becomes a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from detrkit.models.config import DetectorConfig
from detrkit.models.deformable_parts import (
    build_neck,
    build_trunk,
    deformable_decoder_layers,
    layer_options,
    proposal_heads,
)
from detrkit.models.detector import MaskHead
from detrkit.models.dino import DINO, DINOArchitecture, DINODecoder, decoder_parts, dino_heads, learned_query_modules
from detrkit.models.mask_branch import MaskObjective
from detrkit.models.relation_detr import RelationDecoder, RelationOptions, relation_parts, xavier_heads_
from detrkit.nn.backbone.padding import valid_sizes
from detrkit.nn.deformable import DeformableDecoderLayer, deformable_xavier_
from detrkit.nn.position import LearnedPosition, StoredSinePosition
from detrkit.nn.proposals import Proposals, anchors, best_tokens
from detrkit.nn.queries import Queries
from detrkit.nn.salience.encoder import SalienceEncoder, SalienceEncoderLayer, SalienceFilter
from detrkit.nn.salience.grid_suppression import suppress_neighbours
from detrkit.nn.salience.plux_pyramid import PluXPyramid
from detrkit.nn.salience.salience import SaliencePredictor, SalienceTarget
from detrkit.nn.tokens import Tokens, to_tokens
from detrkit.ranges import Few, NonNegative, Number, Positive, Rows, Share, Width
from detrkit.structures import Heatmap, Predictions

__all__ = [
    "SalienceArchitecture",
    "SalienceDETR",
    "SalienceObjective",
    "SalienceWithRelationArchitecture",
    "build_salience_detr",
    "build_salience_detr_with_relation",
]


@dataclass(frozen=True, kw_only=True)
class SalienceObjective(MaskObjective):
    """Objective of Salience-DETR.

    Attributes:
        loss_salience: weight of the salience loss.
    """

    class_loss: Literal["focal", "varifocal"] = "varifocal"
    loss_salience: NonNegative = 2.0


@dataclass(frozen=True, kw_only=True)
class SalienceArchitecture(DINOArchitecture):
    """Architecture of Salience-DETR.

    Attributes:
        level_filter_ratio: share of tokens per level that the encoder refines, finest level first; further levels use
            the last value.
        layer_filter_ratio: share of these tokens per encoder layer; stretched to the number of layers.
        attending_tokens: number of tokens that attend to each other before each layer.
        background_entries: rows and columns of the background embedding, which is stretched for larger maps.
        salience_reach: maximum distance in pixels from a cell of the finest level to the farthest side of an object of
            that level; it doubles with every level.
        suppression_candidates: number of proposals before suppression of neighbours, as a multiple of the queries.
        suppression_threshold: IoU threshold of the 2x2 cells around the tokens.
    """

    backbone: str = "resnet50.tv2_in1k"
    shared_heads: bool = False
    position_offset: Number = -0.5
    position_temperature: Positive = 10000.0
    projection_bias: bool = False
    denoising_extra_label: bool = False
    level_filter_ratio: tuple[float, ...] = (0.4, 0.8, 1.0, 1.0)
    layer_filter_ratio: tuple[float, ...] = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)
    attending_tokens: Rows = 300
    background_entries: Width = 200
    salience_reach: Positive = 64.0
    suppression_candidates: Few = 4
    suppression_threshold: Share = 0.3

    def __post_init__(self) -> None:
        """Check values; raise ValueError naming the field."""
        super().__post_init__()
        if not self.two_stage:
            raise ValueError("Salience-DETR starts from the proposals of its encoder: two_stage must be True")
        if self.proposal_class_agnostic:
            raise ValueError("Salience-DETR ranks proposals by their best class: proposal_class_agnostic must be False")
        if self.num_feature_levels < 2:
            raise ValueError("Salience-DETR guides every level by a coarser one: num_feature_levels must be at least 2")
        for name in ("level_filter_ratio", "layer_filter_ratio"):
            ratios = getattr(self, name)
            if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
                raise ValueError(f"{name} must be shares in (0, 1], got {ratios!r}")

    @property
    def level_ratios(self) -> tuple[float, ...]:
        """Return one share per level."""
        given = self.level_filter_ratio
        return tuple(given[min(level, len(given) - 1)] for level in range(self.num_feature_levels))

    @property
    def layer_ratios(self) -> tuple[float, ...]:
        """Return one share per encoder layer."""
        given, layers = self.layer_filter_ratio, self.encoder_layers
        return tuple(given[round(index * (len(given) - 1) / max(layers - 1, 1))] for index in range(layers))


class SalienceDETR(DINO):
    """Salience-DETR with modules passed in; :func:`build_salience_detr` builds the published ones."""

    config: DetectorConfig[SalienceArchitecture]
    salience: SaliencePredictor
    filter: SalienceFilter
    neck: PluXPyramid

    def network(self, images: Tensor, padding_mask: Tensor, denoising: Sequence[Queries]) -> Predictions:
        """Run DINO on the refined memory; in training, salience is also a prediction."""
        maps = self.backbone(images, padding_mask)
        tokens = self.tokens(maps, padding_mask)
        salience = self.score(tokens)
        memory = self.refine(tokens, salience)
        queries, proposals = self.queries(memory)
        decoded = self.decode([*denoising, queries], memory)
        out = self.predictions(decoded, memory, maps, proposals)
        if self.training:
            objective = self.config.objective
            assert isinstance(objective, SalienceObjective)
            target = self._salience_target(tokens, valid_sizes(padding_mask))
            out.heatmaps["salience"] = Heatmap(salience, target, objective.loss_salience)
        return out

    def score(self, tokens: Tokens) -> Tensor:
        """Return salience logits (B, S)."""
        _, usable = anchors(tokens)
        features = self.features(tokens.content + tokens.position, usable)
        return self.salience(features, tokens, mask_padding=self.config.architecture.mask_backbone_padding)

    def refine(self, tokens: Tokens, salience: Tensor) -> Tokens:
        """Encode and fuse tokens with these salience logits (B, S) into the memory."""
        memory: Tokens = self.encoder(tokens, salience, self.filter(salience, tokens), self.enc_class_embed)
        masks = memory.padding_maps() if self.config.architecture.mask_backbone_padding else None
        fused = [to_tokens(level) for level in self.neck(memory.maps(), masks)]
        return replace(memory, content=torch.cat(fused, dim=1))

    def best(self, proposals: Proposals, memory: Tokens, number: int) -> Tensor:
        """Return the tokens (B, Q) whose proposals become queries; suppressed neighbours come last."""
        scores = proposals.logits.amax(-1)
        if self.config.architecture.mask_backbone_padding:
            scores = scores.masked_fill(memory.padding_mask, -torch.inf)
        architecture = self.config.architecture
        candidates = best_tokens(scores, architecture.suppression_candidates * number)
        ordered = suppress_neighbours(scores, candidates, memory, threshold=architecture.suppression_threshold)
        return ordered[:, :number]

    def _salience_target(self, tokens: Tokens, sizes: Tensor) -> SalienceTarget:
        """Return the salience target of images with these valid sizes, (B, 2) height and width in pixels."""
        reach = [self.config.architecture.salience_reach * 2**level for level in range(len(tokens.shapes) - 1)]
        bounds = (-1.0, *reach, torch.inf)
        level = tokens.levels()
        limits = torch.tensor([bounds[:-1], bounds[1:]]).T[level]
        cells = torch.tensor([(width, height) for height, width in tokens.shapes])
        strides = torch.tensor(self.backbone.strides[-self.config.architecture.backbone_levels :])
        extent = cells[: len(strides)] * strides[:, None]
        # published: a level below the backbone's spreads its cells over the extent of the backbone's last level
        extra = extent[-1:].expand(len(cells) - len(extent), -1)
        pitch = torch.cat((extent, extra)) / cells
        centres = tokens.centres()[0] * tokens.valid_cells[0, level.to(tokens.valid_cells.device)]
        return SalienceTarget(
            centres=centres * pitch[level].to(centres), limits=limits.to(centres), sizes=sizes.flip(-1).to(centres)
        )


@dataclass(frozen=True, kw_only=True)
class SalienceWithRelationArchitecture(RelationOptions, SalienceArchitecture):
    """Architecture of Salience-DETR with a relation."""


def build_salience_detr(
    config: DetectorConfig[SalienceArchitecture], *, mask_head: MaskHead | None = None
) -> SalienceDETR:
    """Build Salience-DETR from a configuration, randomly initialised as in the repository."""
    architecture = config.architecture
    return _build(config, lambda layers: DINODecoder(layers, **decoder_parts(architecture)), mask_head)


def build_salience_detr_with_relation(
    config: DetectorConfig[SalienceWithRelationArchitecture], *, mask_head: MaskHead | None = None
) -> SalienceDETR:
    """Build Salience-DETR with a relation from a configuration, randomly initialised."""
    options = config.architecture
    return _build(config, lambda layers: RelationDecoder(layers, **relation_parts(options, options)), mask_head)


def _build(
    config: DetectorConfig[SalienceArchitecture],
    build_decoder: Callable[[Sequence[DeformableDecoderLayer]], DINODecoder],
    mask_head: MaskHead | None,
) -> SalienceDETR:
    architecture = config.architecture
    layers = deformable_decoder_layers(architecture)
    trunk = build_trunk(architecture, StoredSinePosition)
    encoder = salience_encoder(architecture)
    neck = build_neck(architecture, trunk["backbone"])
    proposals = proposal_heads(architecture)
    query_modules = {**proposals, **salience_modules(architecture), **learned_query_modules(architecture)}
    decoder = build_decoder(layers)
    heads = dino_heads(architecture, query_modules)
    model = SalienceDETR(
        config=config,
        **trunk,
        **neck,
        encoder=encoder,
        decoder=decoder,
        query_modules=query_modules,
        **heads,
        mask_head=mask_head,
    )
    xavier_heads_(model)
    return model


def salience_encoder(architecture: SalienceArchitecture) -> SalienceEncoder:
    """Build the encoder with salience filtering."""
    options, attending = layer_options(architecture), architecture.attending_tokens
    layers = [SalienceEncoderLayer(**options, attending=attending) for _ in range(architecture.encoder_layers)]
    for layer in layers:
        deformable_xavier_(layer)
    entries = architecture.background_entries
    background = LearnedPosition(dim=architecture.hidden_dim, entries=entries, stretch=True)
    return SalienceEncoder(layers, background, checkpointing=architecture.encoder_checkpointing)


def salience_modules(architecture: SalienceArchitecture) -> dict[str, nn.Module]:
    """Build the modules that score, filter and fuse the tokens."""
    dim, levels = architecture.hidden_dim, architecture.num_feature_levels
    salience = SaliencePredictor(dim=dim, num_levels=levels)
    token_filter = SalienceFilter(
        levels=architecture.level_ratios,
        layers=architecture.layer_ratios,
        mask_padding=architecture.mask_backbone_padding,
    )
    return {"salience": salience, "filter": token_filter, "neck": PluXPyramid(dim=dim, num_levels=levels)}
