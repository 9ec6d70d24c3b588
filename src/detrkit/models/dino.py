"""DINO: "DETR with Improved DeNoising Anchor Boxes" (Zhang et al., ICLR 2023, arXiv 2203.03605).

What changes against two-stage Deformable DETR:

1. **Mixed query selection** (section 3.4): proposals give the boxes, learned embeddings the content
   (:meth:`DINO.select`).
2. **Contrastive denoising** (section 3.3): in training, ground truth with noise gives denoising queries
   (:mod:`detrkit.nn.denoising`).
3. **Look forward twice** (section 3.5): the loss of a layer also trains the box of the layer before
   (:class:`Refinement`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from detrkit.models.config import DetectorConfig
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.deformable_parts import (
    DeformableArchitecture,
    Heads,
    build_heads,
    build_neck,
    build_trunk,
    deformable_decoder_layers,
    deformable_encoder,
    proposal_heads,
)
from detrkit.models.detector import MaskHead
from detrkit.nn.deformable import DeformableDecoderLayer
from detrkit.nn.denoising import ContrastiveDenoising, Denoising, DenoisingOptions
from detrkit.nn.heads import MLP
from detrkit.nn.position import sine_boxes
from detrkit.nn.proposals import Proposals
from detrkit.nn.queries import MATCHING, Block, Decoded, Queries, attention_blocks
from detrkit.nn.tokens import Tokens, joined, on_levels
from detrkit.ops.boxes import inverse_sigmoid
from detrkit.ranges import NonNegative, Number, PartBelowOne, Positive, Rows, RowsOrZero, Share, Width
from detrkit.structures import Predictions, QueryGroup, Target

__all__ = ["DINO", "DINOArchitecture", "DINODecoder", "Refinement", "build_dino"]

EPS = 1e-3  # lower bound inside DINO's inverse sigmoid


@dataclass(frozen=True, kw_only=True)
class DINOArchitecture(DeformableArchitecture):
    """Architecture of DINO and its ablations (figure 5, table 4).

    Attributes:
        query_selection: "mixed": boxes from proposals, learned content; "pure": both from proposals; "static": both
            learned, and two_stage off.
        look_forward_twice: see :class:`Refinement`; off, there is also no norm before the heads.
        shared_heads: one class and one box head for all decoder layers, as published.
        denoising: "contrastive", "plain" (DN-DETR, Li et al., CVPR 2022) or "none".
        denoising_queries, denoising_groups, denoising_label_noise, denoising_box_noise, denoising_mask_unused,
            denoising_max_queries: see :mod:`detrkit.nn.denoising`; with 0 queries (contrastive) or groups (plain) only
            the label table remains.
        proposal_masks: with a mask branch, learn the masks of the encoder proposals as well, as MaskDINO does.
        denoising_extra_label: add an unused row to the label table, as published.
    """

    ffn_dim: Width = 2048
    dropout: PartBelowOne = 0.0
    refine_boxes: bool = True
    two_stage: bool = True
    proposal_class_agnostic: bool = False
    position_offset: Number = 0.0
    position_temperature: Positive = 20.0
    query_selection: Literal["mixed", "pure", "static"] = "mixed"
    look_forward_twice: bool = True
    shared_heads: bool = True
    denoising: Literal["contrastive", "plain", "none"] = "contrastive"
    denoising_queries: RowsOrZero = 100
    denoising_groups: RowsOrZero = 5
    denoising_label_noise: Share = 0.5
    denoising_box_noise: NonNegative = 1.0
    denoising_extra_label: bool = True
    denoising_mask_unused: bool = False
    denoising_max_queries: Rows | None = None
    proposal_masks: bool = True

    def __post_init__(self) -> None:
        """Check values; raise ValueError naming the field."""
        super().__post_init__()
        if not self.refine_boxes:
            raise ValueError("DINO refines boxes layer by layer: refine_boxes must be True")
        if self.two_stage == (self.query_selection == "static"):
            raise ValueError(
                "DINO starts from the proposals of its encoder, so two_stage must be True; only with "
                f"query_selection='static' it must be False (here: {self.query_selection!r})"
            )

    @property
    def indicator(self) -> bool:
        """Whether the last channel of the content separates matching and denoising queries (DN-DETR)."""
        return self.denoising == "plain" and self.query_selection != "pure"


def position_head(in_dim: int, dim: int) -> MLP:
    """Build an MLP of two layers with Xavier weights."""
    head = MLP(in_dim, dim, dim, num_layers=2)
    for layer in head.layers:
        nn.init.xavier_uniform_(layer.get_parameter("weight"))
    return head


class DecoderParts(TypedDict):
    """Arguments of :class:`DINODecoder` besides its layers."""

    norm: nn.Module
    ref_point_head: nn.Module
    look_forward_twice: bool
    positions_in_valid_area: bool


def decoder_parts(architecture: DINOArchitecture) -> DecoderParts:
    """Build the arguments of :class:`DINODecoder` besides its layers, randomly initialised."""
    dim = architecture.hidden_dim
    return {
        "norm": nn.LayerNorm(dim) if architecture.look_forward_twice else nn.Identity(),
        "ref_point_head": position_head(2 * dim, dim),
        "look_forward_twice": architecture.look_forward_twice,
        "positions_in_valid_area": architecture.mask_backbone_padding,
    }


class Refinement:
    """Boxes of one pass through the decoder, refined layer by layer.

    With look forward twice, the loss of a layer also trains the offset that the layer before predicted. Without it,
    every layer starts from a box without gradient.

    Args:
        reference: initial boxes (B, N, 4) in [0, 1].
        norm: applied before the heads.
        class_embed, bbox_embed: one head per layer, or one for all.
        look_forward_twice: see above.
    """

    def __init__(
        self,
        reference: Tensor,
        norm: nn.Module,
        class_embed: nn.ModuleList,
        bbox_embed: nn.ModuleList,
        *,
        look_forward_twice: bool,
    ) -> None:
        self.norm, self.class_embed, self.bbox_embed = norm, class_embed, bbox_embed
        self.look_forward_twice = look_forward_twice
        self.boxes = [reference]
        self.hidden: list[Tensor] = []
        self.logits: list[Tensor] = []
        # the base keeps its gradient, so that the loss of this layer trains the offset of the layer before
        self.base = reference
        self.reference = reference.detach()

    def step(self, content: Tensor, *, last: bool) -> None:
        """Apply the heads to the output (B, N, C) of a layer and refine the boxes."""
        head = min(len(self.hidden), len(self.class_embed) - 1)
        hidden = self.norm(content)
        self.hidden.append(hidden)
        self.logits.append(self.class_embed[head](hidden))
        box_head = self.bbox_embed[head]
        self.boxes.append((box_head(hidden).float() + inverse_sigmoid(self.base, EPS)).sigmoid())
        if last:
            return
        if self.look_forward_twice:
            self.base = (box_head(content).float() + inverse_sigmoid(self.reference, EPS)).sigmoid()
        else:
            self.base = self.boxes[-1].detach()
        self.reference = self.base.detach()

    def decoded(self, queries: Sequence[Queries]) -> Decoded:
        """Return the outputs of all layers."""
        boxes = torch.stack(self.boxes[1:])
        return Decoded(tuple(queries), torch.stack(self.hidden), torch.stack(self.logits), boxes)


class DINODecoder(nn.Module):
    """Deformable decoder layers; every layer makes the positions of the queries from their current boxes.

    Args:
        layers: the decoder layers.
        norm: applied before the heads.
        ref_point_head: maps the sine embedding of a box to a position.
        look_forward_twice: see :class:`Refinement`.
        positions_in_valid_area: make positions from boxes in units of the valid area. Published: in units of the padded
            map, so that they depend on the other images of the batch.
    """

    def __init__(
        self,
        layers: Sequence[DeformableDecoderLayer],
        *,
        norm: nn.Module,
        ref_point_head: nn.Module,
        look_forward_twice: bool,
        positions_in_valid_area: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.ref_point_head = ref_point_head
        self.look_forward_twice = look_forward_twice
        self.positions_in_valid_area = positions_in_valid_area

    def forward(
        self, queries: Sequence[Queries], memory: Tokens, class_embed: nn.ModuleList, bbox_embed: nn.ModuleList
    ) -> Decoded:
        """Decode sets of queries with initial boxes."""
        blocks = attention_blocks(queries)
        content = joined([query_set.content for query_set in queries])
        reference = joined([query_set.required_reference for query_set in queries])
        refined = Refinement(reference, self.norm, class_embed, bbox_embed, look_forward_twice=self.look_forward_twice)
        for index, layer in enumerate(self.layers):
            boxes = on_levels(refined.reference, memory)
            position = self.position(
                refined.reference if self.positions_in_valid_area else boxes[:, :, 0], content, index
            )
            content = layer(content, position, boxes, memory, self.attention(blocks, refined.boxes))
            refined.step(content, last=index + 1 == len(self.layers))
        return refined.decoded(queries)

    def position(self, boxes: Tensor, content: Tensor, layer: int) -> Tensor:
        """Return the position encoding (B, N, C) of boxes (B, N, 4) in a layer."""
        embedded = sine_boxes(boxes, content.shape[-1] // 2, order=(1, 0, 2, 3))
        position: Tensor = self.ref_point_head(embedded.to(content.dtype))
        return position

    def attention(self, blocks: Sequence[Block], boxes: Sequence[Tensor]) -> Sequence[Block]:
        """Return the self-attention blocks of the next layer.

        boxes: (B, N, 4), the initial ones and those of all layers so far; unused here.
        """
        return blocks


class DINO(DeformableDETR):
    """DINO with modules passed in; :func:`build_dino` builds the published ones."""

    config: DetectorConfig[DINOArchitecture]
    denoising: Denoising
    tgt_embed: nn.Embedding
    refpoint_embed: nn.Embedding

    def network(self, images: Tensor, padding_mask: Tensor, denoising: Sequence[Queries]) -> Predictions:
        """Encode; take queries from proposals and, in training, from objects with noise; decode."""
        maps = self.backbone(images, padding_mask)
        memory: Tokens = self.encoder(self.tokens(maps, padding_mask))
        queries, proposals = self.queries(memory)
        decoded = self.decode([*denoising, queries], memory)
        return self.predictions(decoded, memory, maps, proposals)

    def denoising_sets(self, targets: list[Target] | None) -> list[Queries]:
        """Return the denoising queries as a list of one set; empty in evaluation and for batches without objects."""
        if not self.training or targets is None or self.config.architecture.denoising == "none":
            return []
        queries = self.denoising(targets)
        return [] if queries is None else [queries]

    def decode(self, queries: Sequence[Queries], memory: Tokens) -> Decoded:
        """Decode all sets of queries."""
        decoded: Decoded = self.decoder(queries, memory, self.class_embed, self.bbox_embed)
        if self.training and self.config.architecture.denoising != "none":
            # a batch without objects uses the label embedding too, since all processes must have the same graph
            return replace(decoded, logits=decoded.logits + 0.0 * self.denoising.label_encoder.weight.sum())
        return decoded

    def queries(self, memory: Tokens) -> tuple[Queries, dict[str, QueryGroup]]:
        """Return the matching queries, and their encoder proposals as predictions."""
        selection = self.config.architecture.query_selection
        if selection == "static":
            content = self.learned_content(self.tgt_embed, len(memory.content))
            reference = self.refpoint_embed.weight.float().sigmoid()
            return Queries(content=content, reference=reference.expand(len(content), -1, -1)), {}
        features, anchor = self.candidates(memory)
        proposals = Proposals.of(features, anchor, self.enc_class_embed, self.enc_bbox_embed)
        if selection == "mixed":
            queries, encoder = self.select(proposals, memory, self.tgt_embed)
            return queries, {"encoder": encoder}
        chosen = proposals.take(self.best(proposals, memory, self.config.architecture.num_queries))
        queries = Queries(content=chosen.features.detach(), reference=chosen.reference())
        return queries, {"encoder": self.proposal_group(chosen, masked=self.config.architecture.proposal_masks)}

    def select(
        self,
        proposals: Proposals,
        memory: Tokens,
        learned: nn.Embedding,
        *,
        name: str = MATCHING,
        repeat: int = 1,
        masked: bool = True,
    ) -> tuple[Queries, QueryGroup]:
        """Select queries ("mixed"): learned content with the best proposal boxes; also return these as predictions.

        repeat, masked: of both, see :class:`Queries`."""
        best = self.best(proposals, memory, learned.num_embeddings)
        chosen = proposals.take(best)
        content = self.learned_content(learned, *best.shape)
        queries = Queries(name=name, content=content, reference=chosen.reference(), repeat=repeat, masked=masked)
        learned_masks = masked and self.config.architecture.proposal_masks
        return queries, self.proposal_group(chosen, repeat=repeat, masked=learned_masks)

    def learned_content(self, learned: nn.Embedding, batch: int, number: int | None = None) -> Tensor:
        """Return the first ``number`` learned contents (B, Q, C), with the indicator of matching queries if any."""
        content = learned.weight[:number]
        if self.config.architecture.indicator:
            content = self.denoising.with_indicator(content, 0.0)
        return content.expand(batch, -1, -1)


def build_denoising(architecture: DINOArchitecture) -> Denoising:
    """Build the module that makes denoising queries."""
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
    """Build learned anchor boxes, kept as logits (inverse sigmoid)."""
    boxes = nn.Embedding(number, 4)
    with torch.no_grad():
        boxes.weight.copy_(inverse_sigmoid(torch.rand_like(boxes.weight)).clamp(-3, 3))
    return boxes


def dino_query_modules(architecture: DINOArchitecture) -> dict[str, nn.Module]:
    """Build the proposal heads and :func:`learned_query_modules`."""
    proposals = proposal_heads(architecture) if architecture.two_stage else {}
    return {**proposals, **learned_query_modules(architecture)}


def xavier_query_modules(architecture: DINOArchitecture) -> dict[str, nn.Module]:
    """Build :func:`dino_query_modules`, with the learned content initialised as in DINO."""
    query_modules = dino_query_modules(architecture)
    if architecture.query_selection == "mixed":
        nn.init.xavier_uniform_(query_modules["tgt_embed"].get_parameter("weight"))
    return query_modules


def learned_query_modules(architecture: DINOArchitecture) -> dict[str, nn.Module]:
    """Build the modules for denoising queries, learned content and learned boxes."""
    query_modules: dict[str, nn.Module] = {}
    if architecture.denoising != "none":
        query_modules["denoising"] = build_denoising(architecture)
    if architecture.query_selection != "pure":
        channels = architecture.hidden_dim - architecture.indicator
        query_modules["tgt_embed"] = nn.Embedding(architecture.num_queries, channels)
    if architecture.query_selection == "static":
        query_modules["refpoint_embed"] = _random_boxes(architecture.num_queries)
        nn.init.zeros_(query_modules["tgt_embed"].get_parameter("weight"))
    return query_modules


def dino_heads(architecture: DINOArchitecture, query_modules: Mapping[str, nn.Module]) -> Heads:
    """Build one class and one box head per decoder layer, or one of each for all layers."""
    heads = build_heads(architecture, query_modules)
    if architecture.shared_heads:
        return {"class_embed": heads["class_embed"][:1], "bbox_embed": heads["bbox_embed"][:1]}
    return heads


def build_dino(config: DetectorConfig[DINOArchitecture], *, mask_head: MaskHead | None = None) -> DINO:
    """Build DINO from a configuration, randomly initialised."""
    architecture = config.architecture
    layers = deformable_decoder_layers(architecture)
    trunk = build_trunk(architecture)
    encoder = deformable_encoder(architecture)
    neck = build_neck(architecture, trunk["backbone"])
    query_modules = xavier_query_modules(architecture)
    decoder = DINODecoder(layers, **decoder_parts(architecture))
    heads = dino_heads(architecture, query_modules)
    return DINO(
        config=config,
        **trunk,
        **neck,
        encoder=encoder,
        decoder=decoder,
        query_modules=query_modules,
        **heads,
        mask_head=mask_head,
    )
