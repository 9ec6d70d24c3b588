"""DINO: "DETR with Improved DeNoising Anchor Boxes" (Zhang et al., ICLR 2023, arXiv 2203.03605).

What changes against two-stage Deformable DETR:

1. **Mixed query selection** (section 3.4): proposals give the boxes, learned embeddings the content
   (:meth:`DINO.select`).
2. **Contrastive denoising** (section 3.3): noised objects as further queries in training
   (:mod:`detrkit.nn.denoising`).
3. **Look forward twice** (section 3.5): the loss of a layer also trains the box of the layer before
   (:class:`Refinement`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor, nn

from detrkit.models.config import DetectorConfig, check_choices
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.deformable_parts import (
    DeformableArchitecture,
    Heads,
    build_heads,
    build_neck,
    build_trunk,
    deformable_decoder_layers,
    encoder_layers,
    proposal_heads,
)
from detrkit.models.detector import MaskHead
from detrkit.nn.deformable import DeformableDecoderLayer, DeformableEncoder
from detrkit.nn.denoising import ContrastiveDenoising, Denoising, DenoisingOptions
from detrkit.nn.heads import MLP
from detrkit.nn.position import sine_boxes
from detrkit.nn.proposals import Proposals
from detrkit.nn.queries import MATCHING, Block, Decoded, Queries, attention_blocks
from detrkit.nn.tokens import Tokens, gather_rows, joined, on_levels
from detrkit.ops.boxes import inverse_sigmoid
from detrkit.structures import Predictions, QueryGroup, Target

__all__ = ["DINO", "DINOArchitecture", "DINODecoder", "Refinement", "build_dino"]

EPS = 1e-3  # of DINO's inverse sigmoid


@dataclass(frozen=True, kw_only=True)
class DINOArchitecture(DeformableArchitecture):
    """Architecture of DINO and of its ablations (figure 5, table 4).

    Attributes:
        query_selection: where queries come from: "mixed": boxes from proposals, learned content; "pure": both from
            proposals; "static": both learned, and two_stage off.
        look_forward_twice: off, a layer's loss trains its own box only, and heads read the queries without a norm.
        shared_heads: one class and one box head for all decoder layers, as published.
        denoising: "contrastive", "plain" (DN-DETR, Li et al., CVPR 2022) or "none".
        denoising_queries, denoising_groups, denoising_label_noise, denoising_box_noise, denoising_mask_unused,
            denoising_max_queries: see :mod:`detrkit.nn.denoising`; contrastive with 0 queries, or plain with 0 groups,
            makes none but keeps the label table.
        denoising_extra_label: the table has one row more than classes, which nothing uses, as published.
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
        choices = {"query_selection": ("mixed", "pure", "static"), "denoising": ("contrastive", "plain", "none")}
        check_choices(self, choices)
        if not self.refine_boxes:
            raise ValueError("DINO refines boxes layer by layer: refine_boxes must be True")
        if self.two_stage == (self.query_selection == "static"):
            raise ValueError(
                "DINO starts from the proposals of its encoder, so two_stage must be True; only with "
                f"query_selection='static' it must be False (here: {self.query_selection!r})"
            )

    @property
    def indicator(self) -> bool:
        """Whether the last channel of a content tells matching from denoising queries (DN-DETR)."""
        return self.denoising == "plain" and self.query_selection != "pure"


def position_head(in_dim: int, dim: int) -> MLP:
    """MLP of two layers with Xavier weights."""
    head = MLP(in_dim, dim, dim, num_layers=2)
    for layer in head.layers:
        nn.init.xavier_uniform_(layer.get_parameter("weight"))
    return head


class DecoderParts(TypedDict):
    """What a decoder is made of beside its layers, see :class:`DINODecoder`."""

    norm: nn.Module
    ref_point_head: nn.Module
    twice: bool
    valid_places: bool


def decoder_parts(architecture: DINOArchitecture) -> DecoderParts:
    """What the decoder of an architecture is made of beside its layers, randomly initialised."""
    dim = architecture.hidden_dim
    return {
        "norm": nn.LayerNorm(dim) if architecture.look_forward_twice else nn.Identity(),
        "ref_point_head": position_head(2 * dim, dim),
        "twice": architecture.look_forward_twice,
        "valid_places": architecture.mask_backbone_padding,
    }


class Refinement:
    """Boxes of one pass through the decoder, refined layer by layer.

    Look forward twice: what a layer adds to its box also reaches the loss of the layer after it, since that starts
    from the sum with its gradient. Off: every layer starts from a box without gradient.

    reference: (B, N, 4) boxes in [0, 1] · norm: in front of the heads · class_embed, bbox_embed: one head per layer, or
    one for all.
    """

    def __init__(
        self, reference: Tensor, norm: nn.Module, class_embed: nn.ModuleList, bbox_embed: nn.ModuleList, *, twice: bool
    ) -> None:
        self.norm, self.class_embed, self.bbox_embed, self.twice = norm, class_embed, bbox_embed, twice
        self.boxes = [reference]
        self.hidden: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.base = reference  # keeps its gradient, so that this layer's loss trains the step before
        self.reference = reference.detach()

    def step(self, content: Tensor, *, last: bool) -> None:
        """Takes what a layer made of the queries (B, N, C)."""
        head = min(len(self.hidden), len(self.class_embed) - 1)
        hidden = self.norm(content)
        self.hidden.append(hidden)
        self.logits.append(self.class_embed[head](hidden))
        box_head = self.bbox_embed[head]
        self.boxes.append((box_head(hidden).float() + inverse_sigmoid(self.base, EPS)).sigmoid())
        if last:
            return
        if self.twice:
            self.base = (box_head(content).float() + inverse_sigmoid(self.reference, EPS)).sigmoid()
        else:
            self.base = self.boxes[-1].detach()
        self.reference = self.base.detach()

    def decoded(self, queries: Sequence[Queries]) -> Decoded:
        """What all layers made of the queries."""
        boxes = torch.stack(self.boxes[1:])
        return Decoded(tuple(queries), torch.stack(self.hidden), torch.stack(self.logits), boxes)


class DINODecoder(nn.Module):
    """Deformable decoder layers whose positions are made from boxes, anew in every layer.

    norm: in front of the heads · ref_point_head: from the sine embedding of a box to a position · twice: look forward
    twice · valid_places: positions are made from boxes of the valid area; published: of the padded map, which follows
    what else is in the batch.
    """

    def __init__(
        self,
        layers: Sequence[DeformableDecoderLayer],
        *,
        norm: nn.Module,
        ref_point_head: nn.Module,
        twice: bool,
        valid_places: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.ref_point_head = ref_point_head
        self.twice, self.valid_places = twice, valid_places

    def forward(
        self, queries: Sequence[Queries], memory: Tokens, class_embed: nn.ModuleList, bbox_embed: nn.ModuleList
    ) -> Decoded:
        """Sets of queries with start boxes -> what all layers made of them."""
        blocks = attention_blocks(queries)
        content = joined([one.content for one in queries])
        start = joined([one.start for one in queries])
        refined = Refinement(start, self.norm, class_embed, bbox_embed, twice=self.twice)
        for index, layer in enumerate(self.layers):
            boxes = on_levels(refined.reference, memory)
            position = self.position(refined.reference if self.valid_places else boxes[:, :, 0], content, index)
            content = layer(content, position, boxes, memory, self.attention(blocks, refined.boxes))
            refined.step(content, last=index + 1 == len(self.layers))
        return refined.decoded(queries)

    def position(self, boxes: Tensor, content: Tensor, layer: int) -> Tensor:
        """Position encoding (B, N, C) of boxes (B, N, 4) in a layer."""
        embedded = sine_boxes(boxes, content.shape[-1] // 2, order=(1, 0, 2, 3))
        position: Tensor = self.ref_point_head(embedded.to(content.dtype))
        return position

    def attention(self, blocks: Sequence[Block], boxes: Sequence[Tensor]) -> Sequence[Block]:
        """The blocks of self-attention in the next layer, given the boxes (B, N, 4) at the start and of all before."""
        return blocks


class DINO(DeformableDETR):
    """DINO with modules passed in; :func:`build_dino` makes the published ones."""

    config: DetectorConfig[DINOArchitecture]
    denoising: Denoising
    tgt_embed: nn.Embedding
    refpoint_embed: nn.Embedding

    def detect(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None) -> Predictions:
        """Encoder; queries from its proposals and, in training, from noised objects; decoder."""
        maps = self.backbone(images, padding_mask)
        memory: Tokens = self.encoder(self.tokens(maps, padding_mask))
        queries, proposals = self.queries(memory)
        decoded = self.decode([*self.noised(targets), queries], memory)
        return self.predictions(decoded, memory, maps, proposals)

    def noised(self, targets: list[Target] | None) -> list[Queries]:
        """The denoising queries, where there are any: in training, of images with objects."""
        if not self.training or targets is None or self.config.architecture.denoising == "none":
            return []
        queries = self.denoising(targets)
        return [] if queries is None else [queries]

    def decode(self, queries: Sequence[Queries], memory: Tokens) -> Decoded:
        """What the decoder makes of all queries."""
        decoded: Decoded = self.decoder(queries, memory, self.class_embed, self.bbox_embed)
        if self.training and self.config.architecture.denoising != "none":
            # a batch without objects still reaches the label table (all processes must have the same graph)
            return replace(decoded, logits=decoded.logits + 0.0 * self.denoising.label_encoder.weight.sum())
        return decoded

    def queries(self, memory: Tokens) -> tuple[Queries, dict[str, QueryGroup]]:
        """The matching queries, and the proposals they come from as predictions."""
        selection = self.config.architecture.query_selection
        if selection == "static":
            batch, reference = memory.content.shape[0], self.refpoint_embed.weight.float().sigmoid()
            content = self.content(self.tgt_embed, batch)
            return Queries(content=content, reference=reference.expand(batch, -1, -1)), {}
        features, start = self.candidates(memory)
        proposals = Proposals.of(features, start, self.enc_class_embed, self.enc_bbox_embed)
        if selection == "mixed":
            queries, encoder = self.select(proposals, memory, self.tgt_embed)
            return queries, {"encoder": encoder}
        best = self.best(proposals, memory, self.config.architecture.num_queries)
        chosen = proposals.take(best)
        queries = Queries(content=gather_rows(features, best).detach(), reference=chosen.reference())
        return queries, {"encoder": chosen.group(class_agnostic=self.config.architecture.proposal_class_agnostic)}

    def select(
        self,
        proposals: Proposals,
        memory: Tokens,
        learned: nn.Embedding,
        *,
        name: str = MATCHING,
        repeat: int = 1,
    ) -> tuple[Queries, QueryGroup]:
        """Mixed query selection: learned contents on the boxes of the best proposals; and these as predictions.

        repeat: how often each object is given to both in matching.
        """
        best = self.best(proposals, memory, learned.num_embeddings)
        chosen = proposals.take(best)
        content = self.content(learned, *best.shape)
        queries = Queries(name=name, content=content, reference=chosen.reference(), repeat=repeat)
        agnostic = self.config.architecture.proposal_class_agnostic
        return queries, chosen.group(class_agnostic=agnostic, repeat=repeat)

    def content(self, learned: nn.Embedding, batch: int, number: int | None = None) -> Tensor:
        """The first ``number`` learned contents (B, Q, C), marked as matching queries where there is an indicator."""
        content = learned.weight[:number]
        if self.config.architecture.indicator:
            content = self.denoising.marked(content, 0.0)
        return content.expand(batch, -1, -1)


def build_denoising(architecture: DINOArchitecture) -> Denoising:
    """What makes denoising queries."""
    options: DenoisingOptions = {
        "num_classes": architecture.num_classes,
        "dim": architecture.hidden_dim,
        "label_rows": architecture.num_classes + architecture.denoising_extra_label,
        "label_noise": architecture.denoising_label_noise,
        "box_noise": architecture.denoising_box_noise,
        "mask_unused": architecture.denoising_mask_unused,
        "max_queries": architecture.denoising_max_queries,
    }
    if architecture.denoising == "plain":
        return Denoising(number=architecture.denoising_groups, indicator=architecture.indicator, **options)
    return ContrastiveDenoising(number=architecture.denoising_queries, **options)


def _random_boxes(number: int) -> nn.Embedding:
    """Learned start boxes, as logits."""
    boxes = nn.Embedding(number, 4)
    with torch.no_grad():
        boxes.weight.copy_(inverse_sigmoid(torch.rand_like(boxes.weight)).clamp(-3, 3))
    return boxes


def dino_start(architecture: DINOArchitecture) -> dict[str, nn.Module]:
    """What queries start from: heads of proposals, and :func:`dino_queries`."""
    proposals = proposal_heads(architecture) if architecture.two_stage else {}
    return {**proposals, **dino_queries(architecture)}


def xavier_start(architecture: DINOArchitecture) -> dict[str, nn.Module]:
    """The same, with learned contents as DINO draws them."""
    start = dino_start(architecture)
    if architecture.query_selection == "mixed":
        nn.init.xavier_uniform_(start["tgt_embed"].get_parameter("weight"))
    return start


def dino_queries(architecture: DINOArchitecture) -> dict[str, nn.Module]:
    """What makes queries: noised objects, learned contents and boxes."""
    start: dict[str, nn.Module] = {}
    if architecture.denoising != "none":
        start["denoising"] = build_denoising(architecture)
    if architecture.query_selection != "pure":
        start["tgt_embed"] = nn.Embedding(architecture.num_queries, architecture.hidden_dim - architecture.indicator)
    if architecture.query_selection == "static":
        start["refpoint_embed"] = _random_boxes(architecture.num_queries)
        nn.init.zeros_(start["tgt_embed"].get_parameter("weight"))
    return start


def dino_heads(architecture: DINOArchitecture, start: Mapping[str, nn.Module]) -> Heads:
    """One class and one box head per decoder layer, or one of each for all."""
    heads = build_heads(architecture, start)
    if architecture.shared_heads:
        return {"class_embed": heads["class_embed"][:1], "bbox_embed": heads["bbox_embed"][:1]}
    return heads


def build_dino(config: DetectorConfig[DINOArchitecture], *, mask_head: MaskHead | None = None) -> DINO:
    """DINO of a configuration, randomly initialised."""
    architecture = config.architecture
    layers = deformable_decoder_layers(architecture)
    trunk = build_trunk(architecture)
    encoder = DeformableEncoder(encoder_layers(architecture))
    neck = build_neck(architecture, trunk["backbone"])
    start = xavier_start(architecture)
    decoder = DINODecoder(layers, **decoder_parts(architecture))
    heads = dino_heads(architecture, start)
    return DINO(
        config=config, **trunk, **neck, encoder=encoder, decoder=decoder, start=start, **heads, mask_head=mask_head
    )
