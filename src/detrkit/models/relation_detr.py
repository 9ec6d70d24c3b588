"""Relation-DETR: "Exploring Explicit Position Relation Prior for Object Detection" (Hou et al., ECCV 2024, arXiv
2407.11699).

What changes against DINO:

1. **Position relation** (section 4.1): from the second decoder layer on self-attention is biased by how the boxes of
   the layers before lie to each other (:mod:`detrkit.nn.relation`), recomputed row by row so that nothing of size N²
   is kept.
2. **Contrastive relation pipeline** (section 4.2): in training further queries, without relation, are matched one to
   many; they keep supervision dense where relation makes the others exclusive.
3. The memory is a fusion of all encoder layers; the content of a query scales its position; classification learns the
   IoU of the box (varifocal loss).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detrkit.models.deformable_detr import box_head, class_head
from detrkit.models.dino import DINO, DINOPPConfig
from detrkit.nn.deformable import MemoryFusion, Tokens
from detrkit.nn.proposals import Proposals, anchors
from detrkit.structures import Predictions, QueryGroup, Target

__all__ = ["RelationDETR", "RelationDETRConfig"]


@dataclass(frozen=True, kw_only=True)
class RelationDETRConfig(DINOPPConfig):
    """Configuration of Relation-DETR.

    one_to_many_queries: queries of the one-to-many branch, 0 for none · one_to_many_repeat: how often each object is
    given to them · memory_fusion: the memory mixes the outputs of all encoder layers, else it is the last.
    """

    relation: str = "full"
    query_scale: bool = True
    memory_fusion: bool = True
    one_to_many_queries: int = 1500
    one_to_many_repeat: int = 6
    class_loss: Literal["focal", "varifocal"] = "varifocal"

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
        super().__post_init__()
        if self.query_selection != "mixed":
            raise ValueError(f"query_selection must be 'mixed' for Relation-DETR, got {self.query_selection!r}")
        if self.one_to_many_queries < 0:
            raise ValueError(f"one_to_many_queries must be at least 0, got {self.one_to_many_queries}")
        if self.one_to_many_repeat < 1:
            raise ValueError(f"one_to_many_repeat must be at least 1, got {self.one_to_many_repeat}")


class RelationDETR(DINO):
    """Relation-DETR with modules passed in; :meth:`from_config` builds the published ones."""

    config: RelationDETRConfig

    @staticmethod
    def build_encoder(config: Any) -> nn.Module:
        """The encoder, with a fusion of its layers."""
        encoder = DINO.build_encoder(config)
        if config.memory_fusion:
            encoder.memory_fusion = MemoryFusion(dim=config.hidden_dim, inputs=config.encoder_layers + 1)
        return encoder

    def _build_queries(self) -> None:
        super()._build_queries()
        config, dim = self.config, self.config.hidden_dim
        if config.one_to_many_queries:
            self.one_to_many_embed = nn.Embedding(config.one_to_many_queries, dim - self._indicator)
            self.one_to_many_class_embed = class_head(config, dim)
            self.one_to_many_bbox_embed = box_head(dim)

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Encoder; queries from its proposals; in training noised objects and the one-to-many queries too."""
        memory = self.encode(images, padding_mask)
        features, proposals = self.proposals(memory)
        content, reference, encoder = self.select(proposals, self.tgt_embed, memory)
        groups = {"encoder": encoder}
        noise = self.noise(targets, content.shape[1])
        if noise is not None:
            content, reference = noise.in_front_of(content, reference)
        apart = 0
        if self.training and self.config.one_to_many_queries:
            more, boxes, groups["one_to_many_encoder"] = self._one_to_many(features, memory)
            apart = more.shape[1]
            content = torch.cat((content, more), dim=1)
            reference = torch.cat((reference, boxes), dim=1)
        # one pass of the decoder for all: values are projected once, only self-attention is kept apart
        logits, boxes = self.decode(content, reference, memory, None if noise is None else noise.bias, apart)
        if apart:
            groups["one_to_many"] = QueryGroup(
                logits[:, :, -apart:], boxes[:, :, -apart:], repeat=self.config.one_to_many_repeat
            )
            logits, boxes = logits[:, :, :-apart], boxes[:, :, :-apart]
        return self._split(logits, boxes, noise, groups)

    def _one_to_many(self, features: Tensor, memory: Tokens) -> tuple[Tensor, Tensor, QueryGroup]:
        """Content, start boxes and proposals of the one-to-many queries, from heads of their own."""
        start, _ = anchors(memory)
        proposals = Proposals(
            self.one_to_many_class_embed(features), self.one_to_many_bbox_embed(features).float() + start
        )
        return self.select(proposals, self.one_to_many_embed, memory, repeat=self.config.one_to_many_repeat)
