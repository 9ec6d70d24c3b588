"""Official parameter names of each family, as rules from our names to the official ones.

This direction, because one of our tensors may have several official names (heads that layers share).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from detrkit.models import entry
from detrkit.models.detector import Detector
from detrkit.nn.backbone import Backbone
from detrkit.weights.official.backbone_layouts import AUTHORS_BACKBONES, RELATION_BACKBONES, BackboneLayout

__all__ = ["KEYMAPS", "KeyMap", "backbone_layout", "keeps_class_names", "official_names", "without_wrapper"]


@dataclass(frozen=True)
class KeyMap:
    """Parameter names of one official layout."""

    rules: tuple[tuple[str, tuple[str, ...]], ...]
    """(pattern over our name, templates of the official names); the first pattern that matches the whole name is used.
    ``{layers}`` in a template is replaced by the index of every decoder layer: a head shared by all layers has one name
    here and one per layer in official files. ``{after}`` is replaced by the number of decoder layers."""
    backbones: Mapping[str, BackboneLayout] = field(default_factory=lambda: AUTHORS_BACKBONES)
    """Backbone family -> layout, whose rules are tried first."""
    wrapper: str = ""
    """Prefix of the names of the detector, where the official model wraps a detector."""
    outside: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Rules for the parameters outside the wrapped detector; they are tried before all others."""

    @property
    def keeps_class_names(self) -> bool:
        """Whether files of this layout hold class names, as those of the Relation-DETR repository do."""
        return self.backbones is RELATION_BACKBONES

    def official(self, key: str, layers: int, backbone: BackboneLayout) -> list[str]:
        """All official names of our tensor ``key``; the first is used for gradients and error messages."""
        for pattern, templates in self.outside:
            if match := re.fullmatch(pattern, key):
                return [match.expand(template) for template in templates]
        return [self.wrapper + name for name in self._of_detector(key, layers, backbone)]

    def _of_detector(self, key: str, layers: int, backbone: BackboneLayout) -> list[str]:
        for pattern, templates in (*backbone.rules, *self.rules):
            match = re.fullmatch(pattern, key)
            if match:
                names = [match.expand(template) for template in templates]
                return [
                    name.replace("{layers}", str(layer)).replace("{after}", str(layers))
                    for name in names
                    for layer in (range(layers) if "{layers}" in name else (0,))
                ]
        return [key]

    def layout_of(self, backbone: nn.Module) -> BackboneLayout:
        """The layout of a backbone; empty for ResNets and other families without rules."""
        family = backbone.family.name if isinstance(backbone, Backbone) else ""
        return self.backbones.get(family, BackboneLayout())


_TRANSFORMER = (
    (r"backbone\.body\.(.+)", (r"backbone.0.body.\1",)),
    (r"position\.(.+)", (r"backbone.1.\1",)),
    (r"((?:en|de)coder\..+)", (r"transformer.\1",)),
)

# DETRsegm: the wrapped detector is its ``detr``; the parts of its mask head are numbered from 1.
_DETR_MASKS = (
    *((rf"mask_head\.{ours}\.(.+)", (rf"bbox_attention.{ours[0]}_linear.\1",)) for ours in ("queries", "keys")),
    *(
        (rf"mask_head\.{ours}\.{index}\.(.+)", (rf"mask_head.{theirs}{index + 1}.\1",))
        for ours, theirs, count in (
            (r"convolution\.layers", "lay", 5),
            (r"convolution\.norms", "gn", 5),
            ("adapters", "adapter", 3),
        )
        for index in range(count)
    ),
    (r"mask_head\.convolution\.out\.(.+)", (r"mask_head.out_lay.\1",)),
)

_DE_DETR = (
    *_TRANSFORMER,
    (r"input_proj\.(\d+)\.conv\.(.+)", (r"input_proj.\1.0.\2",)),
    (r"input_proj\.(\d+)\.norm\.(.+)", (r"input_proj.\1.1.\2",)),
    (r"ref_point_head\.(.+)", (r"ref_point_head.\1", r"transformer.decoder.ref_point_head.\1")),
)

_PROJECTIONS = {
    "query_content": "qcontent",
    "query_position": "qpos",
    "query_sine": "qpos_sine",
    "key_content": "kcontent",
    "key_position": "kpos",
    "value": "v",
}
_CONDITIONAL = (
    *(
        (rf"(decoder\.layers\.\d+)\.{module}\.{ours}\.(.+)", (rf"transformer.\1.{prefix}_{theirs}_proj.\2",))
        for module, prefix in (("self_attn", "sa"), ("multihead_attn", "ca"))
        for ours, theirs in _PROJECTIONS.items()
    ),
    (r"(decoder\.layers\.\d+)\.multihead_attn\.out_proj\.(.+)", (r"transformer.\1.cross_attn.out_proj.\2",)),
)

_HEADS_OF_LAYERS = ((r"bbox_embed\.(\d+)\.(.+)", (r"bbox_embed.\1.\2", r"transformer.decoder.bbox_embed.\1.\2")),)

_PROPOSALS = (r"((?:enc_output|pos_trans)(?:_norm)?\..+)", (r"transformer.\1",))
_DEFORMABLE = (
    *_DE_DETR,
    _PROPOSALS,
    (r"level_embed", ("transformer.level_embed",)),
    (r"reference_points\.(.+)", (r"transformer.reference_points.\1",)),
)
_LEARNED_QUERIES = (r"((?:tgt|refpoint)_embed\..+)", (r"transformer.\1",))
_SHARED_CLASS = (r"class_embed\.0\.(.+)", (r"class_embed.{layers}.\1",))

# The Relation-DETR repository has names of its own.
_RELATION_REPOSITORY = (
    (r"backbone\.body\.(.+)", (r"backbone.\1",)),
    (r"input_proj\.(\d+)\.conv\.(.+)", (r"neck.convs.\1.0.\2",)),
    (r"input_proj\.(\d+)\.norm\.(.+)", (r"neck.convs.\1.1.\2",)),
    (r"level_embed", ("transformer.level_embeds",)),
    (r"class_embed\.(.+)", (r"transformer.decoder.class_head.\1",)),
    (r"bbox_embed\.(.+)", (r"transformer.decoder.bbox_head.\1",)),
    (r"enc_class_embed\.(.+)", (r"transformer.encoder_class_head.\1",)),
    (r"enc_bbox_embed\.(.+)", (r"transformer.encoder_bbox_head.\1",)),
    _LEARNED_QUERIES,
    (r"decoder\.relation\.pos_proj\.(.+)", (r"transformer.decoder.position_relation_embedding.pos_proj.0.\1",)),
    (r"denoising\.label_encoder\.(.+)", (r"denoising_generator.label_encoder.\1",)),
    (r"one_to_many_embed\.(.+)", (r"transformer.hybrid_tgt_embed.\1",)),
    (r"one_to_many_(class|bbox)_embed\.(.+)", (r"transformer.hybrid_\1_head.\2",)),
    _PROPOSALS,
    (r"((?:en|de)coder\..+)", (r"transformer.\1",)),
)

_SALIENCE = (
    (r"position\.dim_t", ("position_embedding.dim_tx", "position_embedding.dim_ty")),
    (r"salience\.alpha", ("transformer.alpha",)),
    (r"salience\.(.+)", (r"transformer.enc_mask_predictor.\1",)),
    (r"filter\.(.+)", (r"transformer.\1",)),
    (r"neck\.(.+)", (r"transformer.neck.\1",)),
    (r"(encoder\.layers\.\d+)\.attention_norm\.(.+)", (r"transformer.\1.pre_norm.\2",)),
    # the encoder ranks tokens with the class head of the proposals
    (r"enc_class_embed\.(.+)", (r"transformer.encoder.enhance_mcsp.\1", r"transformer.encoder_class_head.\1")),
    *_RELATION_REPOSITORY,
)

_DINO = (
    _LEARNED_QUERIES,
    (r"enc_(class|bbox)_embed\.(.+)", (r"transformer.enc_out_\1_embed.\2",)),
    (r"denoising\.label_encoder\.(.+)", (r"label_enc.\1",)),
    *_DEFORMABLE,
)
_HEADS_OF_ALL_LAYERS = (
    r"(class|bbox)_embed\.0\.(.+)",
    (r"\1_embed.{layers}.\2", r"transformer.decoder.\1_embed.{layers}.\2"),
)
_HEADS_OF_EACH_LAYER = (r"((?:class|bbox)_embed\.\d+\..+)", (r"\1", r"transformer.decoder.\1"))

KEYMAPS: Mapping[str, KeyMap] = {
    "deformable_detr": KeyMap((*_DEFORMABLE, *_HEADS_OF_LAYERS)),
    "deformable_detr_shared_heads": KeyMap(
        (*_DEFORMABLE, _SHARED_CLASS, (r"bbox_embed\.0\.(.+)", (r"bbox_embed.{layers}.\1",)))
    ),
    "deformable_detr_two_stage": KeyMap(
        (
            *_DEFORMABLE,
            (
                r"enc_(class|bbox)_embed\.(.+)",
                (r"\1_embed.{after}.\2", r"transformer.decoder.\1_embed.{after}.\2"),
            ),
            _HEADS_OF_EACH_LAYER,
        )
    ),
    "deformable_detr_pp": KeyMap(_RELATION_REPOSITORY, RELATION_BACKBONES),
    "dino": KeyMap((_HEADS_OF_ALL_LAYERS, *_DINO)),
    "dino_own_heads": KeyMap((_HEADS_OF_EACH_LAYER, *_DINO)),
    "dino_relation": KeyMap(_RELATION_REPOSITORY, RELATION_BACKBONES),
    "relation_detr": KeyMap(_RELATION_REPOSITORY, RELATION_BACKBONES),
    "dape": KeyMap(_RELATION_REPOSITORY, RELATION_BACKBONES),
    "salience_detr": KeyMap(_SALIENCE, RELATION_BACKBONES),
    "detr": KeyMap(_TRANSFORMER),
    "detr_panoptic": KeyMap(_TRANSFORMER, wrapper="detr.", outside=_DETR_MASKS),
    "conditional_detr": KeyMap((*_CONDITIONAL, *_TRANSFORMER)),
    "de_detr": KeyMap((*_DE_DETR, *_HEADS_OF_LAYERS)),
    "de_conditional_detr": KeyMap((*_CONDITIONAL, *_DE_DETR, *_HEADS_OF_LAYERS)),
    **{
        # Without refinement all layers share one head.
        f"{family}_shared_heads": KeyMap(
            (
                *rules,
                *_DE_DETR,
                _SHARED_CLASS,
                (
                    r"bbox_embed\.0\.(.+)",
                    (r"bbox_embed.{layers}.\1", r"transformer.decoder.bbox_embed.{layers}.\1"),
                ),
            )
        )
        for family, rules in (("de_detr", ()), ("de_conditional_detr", _CONDITIONAL))
    },
}


def _keymap(model: Detector) -> KeyMap:
    """The layout of a model: that of its family and options, else that of its family."""
    family = entry(model.name).family
    variant = family
    options = model.config.flat()
    if not options.get("refine_boxes", True):
        variant += "_shared_heads"
    elif family == "deformable_detr" and options.get("two_stage"):
        variant += "_two_stage"
    if options.get("relation", "none") != "none":
        variant += "_relation"
    elif not options.get("shared_heads", True):
        variant += "_own_heads"
    return KEYMAPS.get(variant) or KEYMAPS[family]


def keeps_class_names(model: Detector) -> bool:
    """Whether official files of a model hold class names."""
    return _keymap(model).keeps_class_names


def backbone_layout(model: Detector) -> BackboneLayout:
    """The layout of a model's backbone in its official repository."""
    return _keymap(model).layout_of(model.get_submodule("backbone"))


def without_wrapper(model: Detector, names: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Official names of a model, those of its detector as files of the detector alone have them."""
    wrapper = _keymap(model).wrapper
    return {key: [name.removeprefix(wrapper) for name in official] for key, official in names.items()}


def official_names(model: Detector, keys: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Our key -> the official names of that tensor, for ``keys`` or for the whole state dict."""
    keymap, backbone = _keymap(model), backbone_layout(model)
    layers = model.config.architecture.decoder_layers
    return {
        key: keymap.official(key, layers, backbone)
        for key in (model.state_dict() if keys is None else keys)
        if not (key.startswith("backbone.") and key.endswith("num_batches_tracked"))
    }
