"""Deformable DETR: "Deformable Transformers for End-to-End Object Detection" (Zhu et al., ICLR 2021, arXiv 2010.04159).

What changes against DETR:

1. Attention samples a few points around a reference instead of every token (section 4.1,
   :mod:`detrkit.nn.deformable`), so that encoder and decoder can afford several levels.
2. Boxes are relative to the reference and can be refined layer by layer ("+ refine", :class:`DeformableDecoder`).
3. Queries can start from encoder proposals ("++ two-stage", section 4.2, :meth:`DeformableDETR.queries`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detrkit.models.config import DetectorConfig
from detrkit.models.deformable_parts import (
    DeformableArchitecture,
    build_heads,
    build_neck,
    build_trunk,
    deformable_decoder_layers,
    deformable_encoder,
    proposal_heads,
)
from detrkit.models.detector import Detector, MaskHead
from detrkit.nn.backbone import Backbone, FeatureMap
from detrkit.nn.deformable import (
    DeformableDecoderLayer,
    deformable_xavier_,
)
from detrkit.nn.heads import MLP
from detrkit.nn.position import SinePosition, sine_boxes
from detrkit.nn.projection import LevelProjection, project_levels
from detrkit.nn.proposals import Proposals, anchors, best_tokens
from detrkit.nn.queries import Decoded, Queries, attention_blocks
from detrkit.nn.tokens import Tokens, flatten_levels, joined, on_levels
from detrkit.ops.boxes import inverse_sigmoid
from detrkit.structures import Predictions, QueryGroup

__all__ = ["DeformableDETR", "DeformableDecoder", "build_deformable_detr"]


class DeformableDecoder(nn.Module):
    """Layers with deformable attention around references; heads belong to the detector.

    eps: lower bound inside the inverse sigmoid of references.
    """

    def __init__(self, layers: Sequence[DeformableDecoderLayer], *, refine_boxes: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.refine_boxes, self.eps = refine_boxes, eps

    def forward(
        self, queries: Sequence[Queries], memory: Tokens, class_embed: nn.ModuleList, bbox_embed: nn.ModuleList
    ) -> Decoded:
        """Decode sets of queries with positions and references in [0, 1]."""
        blocks = attention_blocks(queries)
        content = joined([query_set.content for query_set in queries])
        position = joined([query_set.required_position for query_set in queries])
        reference = joined([query_set.required_reference for query_set in queries])
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
            reference_logits = inverse_sigmoid(reference, self.eps)
            reference_logits = nn.functional.pad(reference_logits, (0, 4 - reference.shape[-1]))
            boxes.append((offset + reference_logits).sigmoid())
            if self.refine_boxes:
                reference = boxes[-1].detach()
        return Decoded(tuple(queries), torch.stack(hidden), torch.stack(logits), torch.stack(boxes))


class DeformableDETR(Detector):
    """Deformable DETR with modules passed in; :func:`build_deformable_detr` builds the published ones.

    query_modules: modules that make queries, and further modules of subclasses, by the names declared in the class.
    """

    config: DetectorConfig[DeformableArchitecture]

    # with two_stage
    enc_output: nn.Linear
    enc_output_norm: nn.LayerNorm
    enc_class_embed: nn.Linear
    enc_bbox_embed: MLP
    pos_trans: nn.Linear
    pos_trans_norm: nn.LayerNorm
    # without two_stage
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
        query_modules: Mapping[str, nn.Module],
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
        for name, module in query_modules.items():
            self.add_module(name, module)
        self.class_embed = class_embed
        self.bbox_embed = bbox_embed

    def network(self, images: Tensor, padding_mask: Tensor, denoising: Sequence[Queries]) -> Predictions:
        """Encode all levels; take queries from embeddings or proposals; decode around their references."""
        maps = self.backbone(images, padding_mask)
        memory: Tokens = self.encoder(self.tokens(maps, padding_mask))
        queries, proposals = self.queries(memory)
        decoded = self.decoder([queries], memory, self.class_embed, self.bbox_embed)
        return self.predictions(decoded, memory, maps, proposals)

    def tokens(self, maps: Sequence[FeatureMap], padding_mask: Tensor) -> Tokens:
        """Project the feature maps to the width of the transformer and flatten them to tokens."""
        architecture = self.config.architecture
        maps = maps[-architecture.backbone_levels :]
        mask_padding = architecture.mask_backbone_padding
        levels = project_levels(self.input_proj, maps, padding_mask, mask_padding=mask_padding)
        return flatten_levels(levels, self.position, self.level_embed)

    def queries(self, memory: Tokens) -> tuple[Queries, dict[str, QueryGroup]]:
        """Return the queries, and the encoder proposals as predictions."""
        if not self.config.architecture.two_stage:
            batch = memory.content.shape[0]
            position, content = self.query_embed.weight.expand(batch, -1, -1).chunk(2, dim=-1)
            reference = self.reference_points(position).float().sigmoid()
            return Queries(content=content, position=position, reference=reference), {}
        proposals = Proposals.of(*self.candidates(memory), self.enc_class_embed, self.enc_bbox_embed)
        best = self.best(proposals, memory, self.config.architecture.num_queries)
        reference = proposals.take(best).reference()
        content, position = self.from_boxes(sine_boxes(reference, self.config.architecture.hidden_dim // 2))
        encoder = self.proposal_group(proposals)
        return Queries(content=content, position=position, reference=reference), {"encoder": encoder}

    def candidates(self, memory: Tokens) -> tuple[Tensor, Tensor]:
        """Return the features (B, S, C) of all tokens and their anchors (B, S, 4), as logits."""
        anchor, usable = anchors(memory)
        return self.features(memory.content, usable), anchor

    def features(self, content: Tensor, usable: Tensor) -> Tensor:
        """Project content (B, S, C) for the proposal heads, with zeros for tokens that are not usable (B, S)."""
        features: Tensor = self.enc_output_norm(self.enc_output(content * usable[..., None]))
        return features

    def best(self, proposals: Proposals, memory: Tokens, number: int) -> Tensor:
        """Return the tokens (B, Q) of the ``number`` best proposals, which become queries."""
        architecture = self.config.architecture
        logits = proposals.logits
        scores = logits[..., 0] if architecture.proposal_class_agnostic else logits.amax(-1)
        # the result for an image must not depend on how much padding its batch adds
        excluded = memory.padding_mask if architecture.mask_backbone_padding else None
        return best_tokens(scores, number, excluded)

    def proposal_group(self, chosen: Proposals, *, repeat: int = 1, masked: bool = False) -> QueryGroup:
        """Return proposals as predictions; arguments as in :meth:`Proposals.group`."""
        agnostic = self.config.architecture.proposal_class_agnostic
        return chosen.group(class_agnostic=agnostic, repeat=repeat, masked=masked)

    def from_boxes(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Make content and position (B, Q, C) of queries from the sine embedding (B, Q, 2C) of their boxes."""
        embedded = embedded.to(self.pos_trans.weight.dtype)  # made in float32 or better
        position, content = self.pos_trans_norm(self.pos_trans(embedded)).chunk(2, dim=-1)
        return content, position


def _query_modules(architecture: DeformableArchitecture) -> dict[str, nn.Module]:
    """Build the modules that make queries: proposal heads and box projection, or learned embeddings and points."""
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
    """Build Deformable DETR from a configuration, randomly initialised."""
    architecture = config.architecture
    decoder = DeformableDecoder(deformable_decoder_layers(architecture), refine_boxes=architecture.refine_boxes)
    trunk = build_trunk(architecture)
    encoder = deformable_encoder(architecture)
    neck = build_neck(architecture, trunk["backbone"])
    query_modules = _query_modules(architecture)
    heads = build_heads(architecture, query_modules)
    return DeformableDETR(
        config=config,
        **trunk,
        **neck,
        encoder=encoder,
        decoder=decoder,
        query_modules=query_modules,
        **heads,
        mask_head=mask_head,
    )
