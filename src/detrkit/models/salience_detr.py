"""Salience-DETR: "Enhancing Detection Transformer with Hierarchical Salience Filtering Refinement" (Hou et al., CVPR
2024, arXiv 2403.16131).

What changes against DINO, all of it in :meth:`SalienceDETR.refine` and :meth:`SalienceDETR.best`:

1. **Hierarchical salience** (:mod:`detrkit.nn.salience`): how much of an object a token shows is predicted from the
   coarsest level down, supervised independently of scale.
2. **Salience filtering** (:mod:`detrkit.nn.salience_encoder`): the encoder refines a share of each level's tokens, of
   these fewer in every layer; the best attend to each other first. The others get a **background embedding**.
3. **Cross-level token fusion** (:mod:`detrkit.nn.plux_pyramid`): a convolutional pyramid over the memory.
4. **Redundancy removal** (:mod:`detrkit.nn.grid_suppression`): of neighbouring tokens one becomes a query.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detrkit.models.deformable_detr import layer_options
from detrkit.models.dino import DINO, DINOPPConfig
from detrkit.nn.backbone import valid_sizes
from detrkit.nn.deformable import Tokens, deformable_xavier_
from detrkit.nn.grid_suppression import suppress_neighbours
from detrkit.nn.plux_pyramid import PluXPyramid
from detrkit.nn.position import LearnedPosition, StoredSinePosition
from detrkit.nn.proposals import Proposals, anchors, propose
from detrkit.nn.salience import SalienceGoal, SaliencePredictor
from detrkit.nn.salience_encoder import SalienceEncoder, SalienceEncoderLayer, SalienceFilter
from detrkit.structures import Heatmap, Predictions, Target

__all__ = ["SalienceDETR", "SalienceDETRConfig"]


@dataclass(frozen=True, kw_only=True)
class SalienceDETRConfig(DINOPPConfig):
    """Configuration of Salience-DETR.

    level_filter_ratio: share of each level's tokens that the encoder refines, finest level first; further levels have
    the last · layer_filter_ratio: share of those that each layer refines; another number of layers stretches the
    schedule · attending_tokens: how many attend to each other in front of each layer · background_entries: rows and
    columns of the background embedding; larger maps stretch it · salience_reach: objects belong to the finest level
    where their farthest side is up to so many pixels from a cell; every level doubles that · suppression_candidates:
    proposals among which neighbours are suppressed, as a multiple of the queries · suppression_threshold: IoU of the
    2x2 cells around them · loss_salience: weight.
    """

    class_loss: Literal["focal", "varifocal"] = "varifocal"
    level_filter_ratio: tuple[float, ...] = (0.4, 0.8, 1.0, 1.0)
    layer_filter_ratio: tuple[float, ...] = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)
    attending_tokens: int = 300
    background_entries: int = 200
    salience_reach: float = 64.0
    suppression_candidates: int = 4
    suppression_threshold: float = 0.3
    loss_salience: float = 2.0

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
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
        for name in ("attending_tokens", "background_entries", "suppression_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.suppression_threshold <= 1:
            raise ValueError(f"suppression_threshold must be in [0, 1], got {self.suppression_threshold}")

    @property
    def level_ratios(self) -> tuple[float, ...]:
        """The shares of as many levels as there are."""
        given = self.level_filter_ratio
        return tuple(given[min(level, len(given) - 1)] for level in range(self.num_feature_levels))

    @property
    def layer_ratios(self) -> tuple[float, ...]:
        """The schedule of as many layers as the encoder has."""
        given, layers = self.layer_filter_ratio, self.encoder_layers
        return tuple(given[round(index * (len(given) - 1) / max(layers - 1, 1))] for index in range(layers))


class SalienceDETR(DINO):
    """Salience-DETR with modules passed in; :meth:`from_config` builds the published ones."""

    config: SalienceDETRConfig
    position_encoding = StoredSinePosition

    @staticmethod
    def build_encoder(config: Any) -> nn.Module:
        """The salience-filtered encoder."""
        options = {**layer_options(config), "attending": config.attending_tokens}
        layers = [SalienceEncoderLayer(**options) for _ in range(config.encoder_layers)]
        for layer in layers:
            deformable_xavier_(layer)
        background = LearnedPosition(dim=config.hidden_dim, entries=config.background_entries, stretch=True)
        return SalienceEncoder(layers, background)

    def _build_proposals(self) -> None:
        super()._build_proposals()
        config = self.config
        self.salience = SaliencePredictor(dim=config.hidden_dim, num_levels=config.num_feature_levels)
        self.filter = SalienceFilter(
            levels=config.level_ratios,
            layers=config.layer_ratios,
            mask_padding=config.mask_backbone_padding,
        )
        self.neck = PluXPyramid(dim=config.hidden_dim, num_levels=config.num_feature_levels)

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """DINO on the refined memory; in training salience is a prediction too."""
        tokens = self.tokens(images, padding_mask)
        salience = self.score(tokens)
        out = self.read(self.refine(tokens, salience), targets)
        if self.training:
            goal = self._goal(tokens, valid_sizes(padding_mask))
            out.heatmaps["salience"] = Heatmap(salience, goal, self.config.loss_salience)
        return out

    def encode(self, images: Tensor, padding_mask: Tensor) -> Tokens:
        """The memory: salient tokens through the encoder, then all levels through the pyramid."""
        tokens = self.tokens(images, padding_mask)
        return self.refine(tokens, self.score(tokens))

    def score(self, tokens: Tokens) -> Tensor:
        """Salience logits (B, S)."""
        _, usable = anchors(tokens)
        features = self.features(tokens.content + tokens.position, usable)
        return self.salience(features, tokens, mask_padding=self.config.mask_backbone_padding)

    def refine(self, tokens: Tokens, salience: Tensor) -> Tokens:
        """The memory of tokens with these salience logits (B, S)."""
        memory = self.encoder(tokens, salience, self.filter(salience, tokens), self.enc_class_embed)
        return replace(memory, content=self._fuse(memory))

    def _fuse(self, memory: Tokens) -> Tensor:
        sizes, shapes = memory.shapes.prod(-1).tolist(), memory.shapes.tolist()
        maps, masks = (
            [part.unflatten(1, shape) for part, shape in zip(values.split(sizes, dim=1), shapes, strict=True)]
            for values in (memory.content, memory.padding_mask)
        )
        fused = self.neck(
            [level.permute(0, 3, 1, 2) for level in maps], masks if self.config.mask_backbone_padding else None
        )
        return torch.cat([level.flatten(2).transpose(1, 2) for level in fused], dim=1)

    def best(self, proposals: Proposals, memory: Tokens, number: int) -> Tensor:
        """Tokens (B, Q) whose proposals become queries: no neighbours while others are left."""
        scores = proposals.logits.amax(-1)
        if self.config.mask_backbone_padding:
            scores = scores.masked_fill(memory.padding_mask, -torch.inf)
        candidates = propose(scores, self.config.suppression_candidates * number)
        ordered = suppress_neighbours(scores, candidates, memory, threshold=self.config.suppression_threshold)
        return ordered[:, :number]

    def _goal(self, tokens: Tokens, sizes: Tensor) -> SalienceGoal:
        """What salience should be, for images whose valid area has these heights and widths (B, 2) in pixels."""
        reach = [self.config.salience_reach * 2**level for level in range(len(tokens.shapes) - 1)]
        bounds = (-1.0, *reach, torch.inf)
        level = tokens.levels()
        limits = torch.tensor([bounds[:-1], bounds[1:]]).T[level]
        backbone = tokens.shapes[: len(self.backbone.strides)].flip(-1)
        extent = backbone * torch.tensor(self.backbone.strides)[:, None]
        # published: the cells of a level that the backbone does not give divide the extent of its last among them
        extra = extent[-1:].expand(len(tokens.shapes) - len(extent), -1)
        pitch = torch.cat((extent, extra)) / tokens.shapes.flip(-1)
        cells = tokens.centres()[0] * tokens.valid_cells[0, level.to(tokens.valid_cells.device)]
        return SalienceGoal(
            centres=cells * pitch[level].to(cells), limits=limits.to(cells), sizes=sizes.flip(-1).to(cells)
        )
