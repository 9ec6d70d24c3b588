"""Find the registered model that a state dict under official names belongs to.

Sizes and options are inferred from names and shapes. Registered models are then built with them, without memory (on
torch's meta device), the nearest first, and the first model with exactly the tensors of the file is taken.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detrkit.errors import CheckpointError
from detrkit.models import create_model, entry, list_models, model_config
from detrkit.models.config import COMMON_OPTIONS
from detrkit.models.detector import Detector
from detrkit.models.presets import ALIASES, PRESETS
from detrkit.nn.backbone import Backbone
from detrkit.weights.official.keydiff import KeyDiff, compare
from detrkit.weights.official.keymaps import KEYMAPS, official_names
from detrkit.weights.published.catalogue import CATALOGUE

__all__ = ["SIGNS", "Recognition", "on_meta", "recognise"]

# Training arguments of the repositories that shapes do not show -> our options.
_ARGUMENTS = {
    "nheads": "num_heads",
    "dilation": "dilation",
    "pool_res": "roi_resolution",
    "repeat_label": "repeat_label",
    "repeat_ratio": "repeat_ratio",
    "two_stage_match": "two_stage_match",
    "group_detr": "groups",
}
# Options that tensors do not show: models that differ only in these have the same tensors.
_INVISIBLE = COMMON_OPTIONS - {
    "task",
    "num_classes",
    "num_queries",
    "backbone",
    "backbone_norm",
} | {
    "dilation",
    "dropout",
    "num_heads",
    "roi_aligned",
    "roi_resolution",
    "roi_sampling_ratio",
    "freeze_detector",
}
_HEAD_DIM = 32  # in every published model
_CONDITIONAL = {"conditional_detr", "de_conditional_detr"}
_OF_RELATION_DETR = {"deformable_detr_pp", "dino_pp", "relation_detr", "dape", "salience_detr"}
# Part of a name in a file -> kinds of models whose files have it, all of them and no others. They only decide which
# models are built first.
SIGNS: Mapping[str, Collection[str]] = {
    "sampling_offsets": _OF_RELATION_DETR | {"deformable_detr", "dino"},
    "neck": _OF_RELATION_DETR,
    "ca_qcontent_proj": _CONDITIONAL,
    "multihead_attn": {"detr", "detr_panoptic", "de_detr"},
    "bbox_attention": {"detr_panoptic"},
    "hybrid_tgt_embed": {"relation_detr", "dape"},
    "source_proj": {"dape"},
    "enc_mask_predictor": {"salience_detr"},
    "label_enc": {"dino"},
}
# The same of backbones, by the beginning of their names: others need not be built to compare their names.
_BACKBONE_SIGN = ("layer1", "resnet")


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The registered model nearest to a state dict."""

    name: str
    """Registry name."""
    options: dict[str, Any]
    """Options for ``create_model``."""
    diff: KeyDiff
    """Difference between model and file; empty where every tensor fits."""
    also: tuple[str, ...]
    """Other registered models with the same tensors."""
    shared: int
    """Number of tensors that agree."""
    assumed: tuple[str, ...]
    """Options that the file does not show."""

    @property
    def fits(self) -> bool:
        """Whether every tensor is present and has the right shape."""
        return not self.diff

    @property
    def likely(self) -> bool:
        """Whether the file at least belongs to this family: most tensors agree."""
        return self.shared > len(self.diff)


@dataclass(frozen=True)
class _Candidate:
    """A registered model with the sizes of a file."""

    name: str
    backbone: str
    kind: tuple[object, ...]
    """Family and all options that tensors show: candidates of one kind have the same tensors."""
    rank: tuple[bool, int, bool]
    """(inferred options ignored, number of options that differ from the registry, query count differs); the smallest
    rank is the nearest model."""
    options: dict[str, Any]
    assumed: tuple[str, ...]


class _WithoutValues(TorchFunctionMode):
    """Leaves out what sets values of tensors, which have none on the meta device, where that takes half of the time."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _SETTING_VALUES or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


_SETTING_VALUES = {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.copy_}


def on_meta(name: str, **options: Any) -> Detector:
    """Build a model on the meta device: shapes only, no memory for weights."""
    with torch.device("meta"), _WithoutValues():
        return create_model(name, **options)


@lru_cache(maxsize=64)
def _layout(name: str, **options: Any) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """Official names of a model's tensors, and its state dict on the meta device."""
    model = on_meta(name, **options)
    return official_names(model), model.state_dict()


def recognise(
    state: Mapping[str, Tensor],
    *,
    arguments: Mapping[str, object] | None = None,
    name: str | None = None,
    options: Mapping[str, object] | None = None,
    file: str | Path | None = None,
) -> Recognition:
    """Find the registered model that a state dict under official names belongs to, or the nearest model.

    Args:
        state: official names -> tensors.
        arguments: training arguments in the file.
        name: registry name, where it is known; only sizes are inferred then.
        options: known model options.
        file: path of the file; if the catalogue lists its name, the catalogue decides between models with the same
            tensors.

    Raises:
        CheckpointError: ``name`` cannot be built with these options.
    """
    detector = {name.removeprefix("detr."): tensor for name, tensor in state.items()}  # DETR with masks wraps DETR
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    inferred = _options_from_tensors(detector) | _options_from_arguments(arguments or {})
    listed = _models_in_catalogue(file)
    candidates = list(_candidates(name, inferred, given))
    parts = {part for key in state for part in key.split(".")}
    order = _backbones(detector, {candidate.backbone for candidate in candidates})
    candidates = [candidate for candidate in candidates if candidate.backbone in order]
    # of models with the same tensors the plainest, which has the shortest name
    candidates.sort(
        key=lambda item: (
            item.name not in listed,
            order[item.backbone],
            _contradictions(item.name, parts),
            item.rank,
            len(item.name),
        )
    )
    if not _is_detector(state):
        candidates = candidates[:1]  # all are equally distant
    kinds: dict[tuple[object, ...], list[_Candidate]] = {}
    for candidate in candidates:
        kinds.setdefault(candidate.kind, []).append(candidate)
    best: Recognition | None = None
    for first, *others in kinds.values():
        try:
            expected, own = _layout(first.name, **first.options)
        except (TypeError, ValueError) as error:
            if name is not None:
                raise CheckpointError(f"model '{name}' cannot be built for this file: {error}") from error
            continue  # the family does not allow these sizes
        diff = compare(expected, own, state)
        if best is None or len(diff) < len(best.diff):
            twins = [] if first.name in listed else [other.name for other in others if other.rank == first.rank]
            best = Recognition(
                name=first.name,
                options=first.options,
                diff=diff,
                also=tuple(dict.fromkeys(twin for twin in twins if twin != first.name)),
                shared=len(expected) - len(diff.missing) - len(diff.mismatched),
                assumed=first.assumed,
            )
        if best.fits:
            break
    if best is None:
        asked = f" and the options {', '.join(given)}" if given else ""
        raise CheckpointError(f"no {name or 'registered model'} can be built with the sizes in this file{asked}")
    return best


def _contradictions(name: str, parts: Collection[str]) -> int:
    """How many signs speak against a model. parts: of the names in the file."""
    model = ALIASES.get(name, name)
    kind = PRESETS[model if model in PRESETS else model.rpartition("_q")[0]].kind
    return sum((sign in parts) != (kind in kinds) for sign, kinds in SIGNS.items())


def _is_detector(state: Mapping[str, Tensor]) -> bool:
    """Whether any name looks like a detection transformer."""
    return any(re.search(r"backbone|transformer|decoder|query|class_embed", name) for name in state)


def _backbones(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, int]:
    """The backbones among ``names`` that the file may hold, with their ranks: 0 for the most likely."""
    sign, beginning = _BACKBONE_SIGN
    if any(name.startswith("backbone.") and sign in name.split(".") for name in state):
        names = [name for name in names if name.startswith(beginning)] or names
    share, found = {}, {}
    for name in names:
        layouts = _backbone_names(name)
        found[name] = max(len(wanted & state.keys()) for wanted in layouts)
        share[name] = max(len(wanted & state.keys()) / len(wanted) for wanted in layouts)
    likely = [name for name in names if share[name] >= max(share.values()) - 0.1]
    # a ResNet-101 has all the names of a ResNet-50
    fits = {name: (-share[name], -found[name]) for name in likely}
    ranks = sorted(set(fits.values()))
    return {name: ranks.index(fit) for name, fit in fits.items()}


@lru_cache(maxsize=64)
def _backbone_names(name: str) -> list[frozenset[str]]:
    """Names of the tensors of a backbone, in each official layout."""
    with torch.device("meta"), _WithoutValues():
        backbone = Backbone(name=name)
    keys = [f"backbone.{key}" for key in backbone.state_dict() if not key.endswith("num_batches_tracked")]
    return [
        frozenset(name for key in keys for name in keymap.official(key, 0, keymap.layout_of(backbone)))
        for keymap in (KEYMAPS["dino"], KEYMAPS["dino_relation"])
    ]


def _models_in_catalogue(file: str | Path | None) -> set[str]:
    """Models of the catalogue's files with this file name (downloads have a prefix)."""
    name = "" if file is None else Path(file).name
    return {item.model for item in CATALOGUE.values() if item.file and name.endswith(item.file)}


def _candidates(name: str | None, inferred: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[_Candidate]:
    """Models that the file may hold: each with the inferred options and, in case they mislead, as registered.

    Raises:
        CheckpointError: the model ``name`` cannot be built with these options.
    """
    for model in [name] if name is not None else list_models():
        for as_registered in (False, True):
            try:
                candidate = _candidate(model, inferred, given, as_registered=as_registered)
            except (TypeError, ValueError) as error:
                if name is not None and as_registered:
                    raise CheckpointError(str(error)) from error
                continue  # the model does not have one of these options, or does not allow its value
            if candidate is not None:
                yield candidate


def _candidate(
    name: str, inferred: Mapping[str, Any], given: Mapping[str, Any], *, as_registered: bool
) -> _Candidate | None:
    """A registered model with the sizes of the file; None where the query rows cannot be split into its groups.

    Args:
        name: registry name.
        inferred: options inferred from the file.
        given: options that are known; they win.
        as_registered: keep the registered options except the numbers of classes and queries.

    Raises:
        TypeError, ValueError: an option that the model does not have, or a value out of range.
    """
    base = model_config(name, **given)
    registered = base.flat()
    known = registered.keys() - set(given)
    differing = {key: value for key, value in inferred.items() if key in known and registered[key] != value}
    options = {} if as_registered else dict(differing)
    assumed: tuple[str, ...] = ()
    if "hidden_dim" in options and "num_heads" in known - set(inferred):
        options["num_heads"], assumed = max(1, options["hidden_dim"] // _HEAD_DIM), ("num_heads",)
    sizes: dict[str, int] = {}
    if "class_rows" in inferred and "num_classes" in known:
        sizes["num_classes"] = inferred["class_rows"] - (base.architecture.class_slots - base.architecture.num_classes)
    if "query_rows" in inferred and "num_queries" in known:
        groups = options.get("groups", registered.get("groups", 1))
        sizes["num_queries"], rest = divmod(inferred["query_rows"], groups)
        if rest:
            return None
    elif registered.get("two_stage") and "num_queries" in known:
        # queries are selected among the proposals of the encoder: no tensor has one row per query
        queries = inferred.get("queries_in_arguments")
        sizes["num_queries"] = base.architecture.num_queries if queries is None else queries
        assumed += ("num_queries",) if queries is None else ()
    options = {**sizes, **options, **given}
    config = model_config(name, **options)
    shown = ((key, value) for key, value in config.flat().items() if key not in _INVISIBLE)
    kind = (entry(name).family, *shown)
    rank = (as_registered, len(differing), config.architecture.num_queries != base.architecture.num_queries)
    return _Candidate(name, base.architecture.backbone, kind, rank, options, assumed)


def _options_from_tensors(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options inferred from names and shapes; models without an option ignore it."""
    inferred: dict[str, Any] = {
        "pre_norm": "transformer.encoder.norm.weight" in state,
        "position_embedding": "learned" if "backbone.1.row_embed.weight" in state else "sine",
        "num_feature_levels": _count(state, r"(input_proj|neck\.convs)\.(\d+)\.0\.weight"),
        "encoder_layers": _count(state, r"transformer\.encoder\.layers\.(\d+)\.norm1\.weight"),
        "decoder_layers": _count(state, r"transformer\.decoder\.layers\.(\d+)\.norm1\.weight"),
        # models with proposals always refine boxes; DINO does so with one head shared by all layers
        "refine_boxes": "transformer.enc_output.weight" in state or not _shared_heads(state),
        "reference_dim": _rows(state, r"(transformer\.decoder\.)?ref_point_head\.layers\.1\.bias") or 0,
        "hidden_dim": _rows(state, r"transformer\.encoder\.layers\.0\.norm1\.weight"),
        "ffn_dim": _rows(state, r"transformer\.encoder\.layers\.0\.linear1\.bias"),
        "class_rows": _rows(state, r"class_embed\.(0\.)?bias|transformer\.decoder\.class_head\.0\.bias"),
        "query_rows": _rows(state, r"(query_embed|transformer\.tgt_embed)\.weight"),
        "one_to_many_queries": _rows(state, r"transformer\.hybrid_tgt_embed\.weight"),
    }
    return {key: value for key, value in inferred.items() if value is not None}


def _options_from_arguments(arguments: Mapping[str, object]) -> dict[str, object]:
    """Options in the training arguments of a file that shapes do not show."""
    plain = {key: value for key, value in arguments.items() if isinstance(value, int | float | None)}
    inferred: dict[str, object] = {ours: plain[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in plain}
    if "nms" in plain:
        inferred["nms"] = plain.get("nms_thresh", 0.7) if plain["nms"] else None
        inferred["nms_decay"] = plain.get("nms_remove") if plain["nms"] else None
    if isinstance(plain.get("num_queries"), int):
        inferred["queries_in_arguments"] = plain["num_queries"]  # used only where no tensor shows the number
    return inferred


def _rows(state: Mapping[str, Tensor], pattern: str) -> int | None:
    """Size of the first dimension of the first tensor whose name matches; None where there is none."""
    return next((len(tensor) for name, tensor in state.items() if re.fullmatch(pattern, name) and tensor.dim()), None)


def _count(state: Mapping[str, Tensor], pattern: str) -> int | None:
    """Number of tensors whose names match; None where there is none."""
    return sum(re.fullmatch(pattern, name) is not None for name in state) or None


def _shared_heads(state: Mapping[str, Tensor]) -> bool:
    """Whether all decoder layers share one head: equal tensors under several names."""
    layers: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        head = re.fullmatch(r"((?:class|bbox)_embed)\.\d+\.(.+)", name)
        if head:
            layers.setdefault(f"{head[1]}.{head[2]}", []).append(tensor)
    return bool(layers) and all(_same(first, other) for first, *others in layers.values() for other in others)


def _same(first: Tensor, other: Tensor) -> bool:
    return first is other or (not first.is_meta and torch.equal(first, other))
