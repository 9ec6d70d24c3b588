"""DINO: "DETR with Improved DeNoising Anchor Boxes" (Zhang et al., ICLR 2023, arXiv 2203.03605).

What changes against two-stage Deformable DETR, all of it in :meth:`DINO.detect`:

1. **Mixed query selection** (section 3.4): proposals give the boxes, learned embeddings the content.
2. **Contrastive denoising** (section 3.3): noised objects as further queries in training.
3. **Look forward twice** (section 3.5): the loss of a layer also trains the box of the layer before.

With ``relation`` self-attention is biased by how boxes lie to each other: DINO++ of the Relation-DETR repository. Its
DAB-Deformable-DETR++ and DN-Deformable-DETR++ are what is left of DINO without some of these:

=====  =================  =================  ==========================================  ============
++ of  content            start boxes        denoising                                   look forward
=====  =================  =================  ==========================================  ============
DINO   learned            proposals          contrastive                                 twice
DAB    tokens' features   proposals          none                                        once
DN     learned            learned            plain (DN-DETR, Li et al., CVPR 2022)        once
=====  =================  =================  ==========================================  ============
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from detrkit.models.config import check_choices
from detrkit.models.deformable_detr import DeformableDETR, DeformableDETRConfig
from detrkit.nn.attention import AttentionBias
from detrkit.nn.deformable import Tokens, on_levels
from detrkit.nn.denoising import ContrastiveDenoising, Denoising, DenoisingQueries
from detrkit.nn.heads import MLP
from detrkit.nn.position import sine_boxes
from detrkit.nn.proposals import Proposals, gather_rows
from detrkit.nn.relation import build_relation
from detrkit.ops.boxes import inverse_sigmoid
from detrkit.structures import Predictions, QueryGroup, Target

__all__ = ["DINO", "DINOConfig", "DINOPPConfig"]

EPS = 1e-3  # of DINO's inverse sigmoid
_CHOICES = {
    "query_selection": ("mixed", "pure", "static"),
    "relation": ("none", "full", "low_rank"),
    "denoising": ("contrastive", "plain", "none"),
}


@dataclass(frozen=True, kw_only=True)
class DINOConfig(DeformableDETRConfig):
    """Configuration of DINO.

    query_selection: where queries come from (figure 5): "mixed": boxes from proposals, learned content; "pure": both
    from proposals; "static": both learned, and two_stage off · look_forward_twice: off, a layer's loss trains its own
    box only, and heads read the queries without a norm · shared_heads: one class and one box head for all decoder
    layers, as published · relation: "full" adds the position relation, "low_rank" one of rank ``relation_rank`` ·
    query_scale: from the second layer on, the content of a query scales its position (Relation-DETR) · denoising:
    "contrastive", "plain" or "none" ·
    denoising_*: see :mod:`detrkit.nn.denoising`; contrastive with 0 ``denoising_queries``, or plain with 0
    ``denoising_groups``, makes none but keeps the label table · denoising_extra_label: the table has one row more than
    classes, which nothing uses, as published.
    """

    ffn_dim: int = 2048
    dropout: float = 0.0
    refine_boxes: bool = True
    two_stage: bool = True
    proposal_class_agnostic: bool = False
    position_offset: float = 0.0
    position_temperature: float = 20.0
    query_selection: str = "mixed"
    look_forward_twice: bool = True
    shared_heads: bool = True
    relation: str = "none"
    relation_rank: int = 16
    query_scale: bool = False
    denoising: str = "contrastive"
    denoising_queries: int = 100
    denoising_groups: int = 5
    denoising_label_noise: float = 0.5
    denoising_box_noise: float = 1.0
    denoising_extra_label: bool = True
    denoising_mask_unused: bool = False
    denoising_max_queries: int | None = None

    def __post_init__(self) -> None:
        """Checks values; raises ValueError naming the field."""
        super().__post_init__()
        check_choices(self, _CHOICES)
        if not self.refine_boxes:
            raise ValueError("DINO refines boxes layer by layer: refine_boxes must be True")
        if self.two_stage == (self.query_selection == "static"):
            raise ValueError(
                "DINO starts from the proposals of its encoder, so two_stage must be True; only with "
                f"query_selection='static' it must be False (here: {self.query_selection!r})"
            )


@dataclass(frozen=True, kw_only=True)
class DINOPPConfig(DINOConfig):
    """Configuration of DINO as the Relation-DETR repository builds it: heads of their own for every
    layer, another position encoding and neck, its own resizing and padding."""

    backbone: str = "resnet50.tv2_in1k"
    shared_heads: bool = False
    position_offset: float = -0.5
    position_temperature: float = 10000.0
    projection_bias: bool = False
    denoising_extra_label: bool = False
    eval_resize: Literal["round", "float32_truncate"] = "float32_truncate"
    size_divisor: int = 32
    relation_detr_start: ClassVar[bool] = True


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
        if config.two_stage:
            self._build_proposals()
        if config.denoising != "none":
            self.denoising = self._build_denoising()
        if config.query_selection != "pure":
            self.tgt_embed = nn.Embedding(config.num_queries, dim - self._indicator)
        if config.query_selection == "static":
            self.refpoint_embed = nn.Embedding(config.num_queries, 4)
            with torch.no_grad():
                self.refpoint_embed.weight.copy_(
                    inverse_sigmoid(torch.rand_like(self.refpoint_embed.weight)).clamp(-3, 3)
                )
            nn.init.zeros_(self.tgt_embed.weight)
        elif config.query_selection == "mixed" and not config.relation_detr_start:
            nn.init.xavier_uniform_(self.tgt_embed.weight)
        self.decoder.norm = nn.LayerNorm(dim) if config.look_forward_twice else nn.Identity()
        self.decoder.ref_point_head = position_head(2 * dim, dim)
        if config.query_scale and config.decoder_layers > 1:
            self.decoder.query_scale = position_head(dim, dim)
        if config.relation != "none" and config.decoder_layers > 1:
            self.decoder.relation = build_relation(
                config.relation, num_heads=config.num_heads, rank=config.relation_rank
            )

    @property
    def _indicator(self) -> bool:
        """Whether the last channel of a content tells matching from denoising queries (DN-DETR)."""
        return self.config.denoising == "plain" and self.config.query_selection != "pure"

    def _build_denoising(self) -> Denoising:
        config = self.config
        common: dict[str, Any] = {
            "num_classes": config.num_classes,
            "dim": config.hidden_dim,
            "label_rows": config.num_classes + config.denoising_extra_label,
            "label_noise": config.denoising_label_noise,
            "box_noise": config.denoising_box_noise,
            "mask_unused": config.denoising_mask_unused,
            "max_queries": config.denoising_max_queries,
        }
        if config.denoising == "plain":
            return Denoising(number=config.denoising_groups, indicator=self._indicator, **common)
        return ContrastiveDenoising(number=config.denoising_queries, **common)

    def _build_heads(self) -> None:
        super()._build_heads()
        if self.config.shared_heads:
            self.class_embed, self.bbox_embed = self.class_embed[:1], self.bbox_embed[:1]

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Encoder; queries from its proposals and, in training, from noised objects; decoder."""
        return self.read(self.encode(images, padding_mask), targets)

    def read(self, memory: Tokens, targets: list[Target] | None) -> Predictions:
        """What the queries find in the memory."""
        content, reference, groups = self._queries(memory)
        noise = self.noise(targets, content.shape[1])
        if noise is not None:
            content, reference = noise.in_front_of(content, reference)
        logits, boxes = self.decode(content, reference, memory, None if noise is None else noise.bias)
        return self._split(logits, boxes, noise, groups)

    def noise(self, targets: list[Target] | None, num_queries: int) -> DenoisingQueries | None:
        """Denoising queries for ``num_queries`` matching ones, in training."""
        if not self.training or targets is None or self.config.denoising == "none":
            return None
        return self.denoising(targets, num_queries)

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
        code: Tensor | None = None
        base = reference  # keeps its gradient, so that this layer's loss trains the step before
        reference = reference.detach()
        for index, layer in enumerate(self.decoder.layers):
            scaled = on_levels(reference, memory)
            # published: places on the padded map, which follow what else is in the batch
            place = reference if self.config.mask_backbone_padding else scaled[:, :, 0]
            position = self.query_position(place, content, index, code)
            content, code = layer(content, position, scaled, memory, bias, apart)
            hidden = self.decoder.norm(content)
            head = 0 if self.config.shared_heads else index
            logits.append(self.class_embed[head](hidden))
            boxes.append((self.bbox_embed[head](hidden).float() + inverse_sigmoid(base, EPS)).sigmoid())
            if index + 1 < len(self.decoder.layers):
                if self.config.look_forward_twice:
                    base = (self.bbox_embed[head](content).float() + inverse_sigmoid(reference, EPS)).sigmoid()
                    reference = base.detach()
                else:
                    base = reference = boxes[-1].detach()
                if self.config.relation != "none":
                    bias = self.decoder.relation.bias(boxes[-2][:, :related], boxes[-1][:, :related], blocked)
        return torch.stack(logits), torch.stack(boxes[1:])

    def query_position(self, boxes: Tensor, content: Tensor, layer: int, code: Tensor | None) -> Tensor:
        """Position encoding (B, N, C) of boxes (B, N, 4) in a layer; code: what the layer before sampled, or None."""
        embedded = sine_boxes(boxes, self.config.hidden_dim // 2, order=(1, 0, 2, 3))
        position: Tensor = self.decoder.ref_point_head(embedded.to(content.dtype))
        if self.config.query_scale and layer:
            position = position * self.decoder.query_scale(content)
        return position

    def _queries(self, memory: Tokens) -> tuple[Tensor, Tensor, dict[str, QueryGroup]]:
        """Content (B, Q, C) and start boxes (B, Q, 4) of the queries, and the proposals as predictions."""
        if self.config.query_selection == "static":
            batch, reference = len(memory.content), self.refpoint_embed.weight.float().sigmoid()
            return self.content(self.tgt_embed, batch), reference.expand(batch, -1, -1), {}
        features, proposals = self.proposals(memory)
        if self.config.query_selection == "mixed":
            content, reference, encoder = self.select(proposals, self.tgt_embed, memory)
        else:
            index, reference, encoder = self._start(proposals, memory, self.config.num_queries)
            content = gather_rows(features, index).detach()
        return content, reference, {"encoder": encoder}

    def select(
        self, proposals: Proposals, learned: nn.Embedding, memory: Tokens, repeat: int = 1
    ) -> tuple[Tensor, Tensor, QueryGroup]:
        """Mixed query selection: learned content (B, Q, C), the best proposals' boxes (B, Q, 4), and these proposals.

        repeat: how often objects are given to the proposals in matching.
        """
        index, reference, encoder = self._start(proposals, memory, learned.num_embeddings, repeat)
        return self.content(learned, *index.shape), reference, encoder

    def _start(
        self, proposals: Proposals, memory: Tokens, number: int, repeat: int = 1
    ) -> tuple[Tensor, Tensor, QueryGroup]:
        """The best proposals: tokens (B, Q), boxes (B, Q, 4) without gradient, and as predictions."""
        index = self.best(proposals, memory, number)
        boxes = gather_rows(proposals.boxes, index)
        encoder = QueryGroup(
            gather_rows(proposals.logits, index)[None],
            boxes.sigmoid()[None],
            class_agnostic=self.config.proposal_class_agnostic,
            repeat=repeat,
        )
        return index, boxes.detach().sigmoid(), encoder

    def content(self, learned: nn.Embedding, batch: int, number: int | None = None) -> Tensor:
        """The first ``number`` learned contents (B, Q, C), marked as matching queries where there is an indicator."""
        content = learned.weight[:number]
        return (self.denoising.marked(content, 0.0) if self._indicator else content).expand(batch, -1, -1)

    def _split(
        self, logits: Tensor, boxes: Tensor, noise: DenoisingQueries | None, groups: dict[str, QueryGroup]
    ) -> Predictions:
        """Predictions of the matching queries, and in training groups of queries with losses of their own."""
        if self.training and self.config.denoising != "none":
            # a batch without objects still reaches the label table (all processes must have the same graph)
            logits = logits + 0.0 * self.denoising.label_encoder.weight.sum()
        if noise is not None:
            first = noise.content.shape[1]
            denoising = QueryGroup(
                logits[:, :, :first],
                boxes[:, :, :first],
                pairs=noise.pairs,
                normaliser=float(noise.groups),
                ignored=noise.unused,
            )
            groups = {"denoising": denoising, **groups}
            logits, boxes = logits[:, :, first:], boxes[:, :, first:]
        return Predictions(logits, boxes, groups=groups if self.training else {})
