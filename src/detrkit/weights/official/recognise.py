"""Which registered model a state dict under official names belongs to: read off its shapes, then compared key by key.

The registry decides, not a list of tricks: the models of the registry are built without memory (on torch's meta device)
with the sizes that the file shows, the nearest first, and the one whose tensors are those of the file wins.
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

from detrkit.errors import CheckpointError
from detrkit.models import create_model, entry, list_models, model_config
from detrkit.models.config import COMMON_OPTIONS
from detrkit.models.detector import Detector
from detrkit.nn.backbone import Backbone
from detrkit.weights.official.keydiff import KeyDiff, compare
from detrkit.weights.official.keymaps import KEYMAPS, official_names
from detrkit.weights.published.catalogue import CATALOGUE

__all__ = ["Match", "match", "on_meta"]

# The repositories' training arguments that no shape shows -> our configuration.
_ARGUMENTS = {
    "nheads": "num_heads",
    "dilation": "dilation",
    "pool_res": "roi_resolution",
    "repeat_label": "repeat_label",
    "repeat_ratio": "repeat_ratio",
    "two_stage_match": "two_stage_match",
    "group_detr": "groups",
}
# What no tensor shows: models that differ in these alone cannot be told apart.
_INVISIBLE = COMMON_OPTIONS - {
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
_HEAD_DIM = 32  # of every published size


@dataclass(frozen=True, kw_only=True)
class Match:
    """The registered model nearest to a state dict.

    name, options: what ``create_model`` takes · diff: empty where every tensor fits · also: other registered models
    with the same tensors, between which nothing in the file decides · shared: how many tensors agree · assumed: options
    that nothing in the file tells.
    """

    name: str
    options: dict[str, Any]
    diff: KeyDiff
    also: tuple[str, ...]
    shared: int
    assumed: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether every tensor is there and has the right shape."""
        return not self.diff

    @property
    def likely(self) -> bool:
        """Whether the file is of this family at least: most of its tensors agree."""
        return self.shared > len(self.diff)


@dataclass(frozen=True)
class _Candidate:
    """A registered model with the sizes of a file.

    kind: family and all settings that tensors show; candidates of one kind have the same tensors · rank: the least is
    nearest: whether what the file shows is disregarded, settings that differ from the registry's, whether the query
    count does.
    """

    name: str
    backbone: str
    kind: tuple[object, ...]
    rank: tuple[bool, int, bool]
    options: dict[str, Any]
    assumed: tuple[str, ...]


def on_meta(name: str, **options: Any) -> Detector:
    """The model without memory for its weights: shapes only."""
    with torch.device("meta"):
        return create_model(name, **options)


@lru_cache(maxsize=64)
def _layout(name: str, **options: Any) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """Official names and shapes of a model's tensors."""
    model = on_meta(name, **options)
    return official_names(model), model.state_dict()


def match(
    state: Mapping[str, Tensor],
    *,
    arguments: Mapping[str, object] | None = None,
    name: str | None = None,
    options: Mapping[str, object] | None = None,
    file: str | Path | None = None,
) -> Match:
    """The registered model that a state dict under official names belongs to, or the nearest.

    arguments: the training arguments in the file · name: the model, where it is known; only its sizes are read off ·
    options: fields of its configuration that are known too · file: where the catalogue has a file of this name, it
    decides between models with the same tensors.

    Raises:
        CheckpointError: ``name`` with these options cannot be built.
    """
    # DETR with masks has the names of DETR behind one of its own
    detector = {name.removeprefix("detr."): tensor for name, tensor in state.items()}
    chosen = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    facts = _facts(detector) | _training(arguments or {})
    listed = _listed(file)
    candidates = list(_candidates(name, facts, chosen))
    order = _backbones(detector, {candidate.backbone for candidate in candidates})
    candidates = [candidate for candidate in candidates if candidate.backbone in order]
    # of models with the same tensors the plainest, which has the shortest name
    candidates.sort(key=lambda item: (item.name not in listed, order.index(item.backbone), item.rank, len(item.name)))
    if not _is_detector(state):
        candidates = candidates[:1]  # all are equally far
    kinds: dict[tuple[object, ...], list[_Candidate]] = {}
    for candidate in candidates:
        kinds.setdefault(candidate.kind, []).append(candidate)
    best: Match | None = None
    for first, *others in kinds.values():
        try:
            expected, own = _layout(first.name, **first.options)
        except (TypeError, ValueError) as error:
            if name is not None:
                raise CheckpointError(f"model '{name}' cannot be built for this file: {error}") from error
            continue  # the family refuses these sizes
        diff = compare(expected, own, state)
        if best is None or len(diff) < len(best.diff):
            twins = [] if first.name in listed else [other.name for other in others if other.rank == first.rank]
            best = Match(
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
        asked = f" and the options {', '.join(chosen)}" if chosen else ""
        raise CheckpointError(f"no {name or 'registered model'} can be built with the sizes in this file{asked}")
    return best


def _is_detector(state: Mapping[str, Tensor]) -> bool:
    """Whether any name reminds of a detection transformer."""
    return any(re.search(r"backbone|transformer|decoder|query|class_embed", name) for name in state)


def _backbones(state: Mapping[str, Tensor], names: Collection[str]) -> list[str]:
    """Those of these backbones that the file may hold, the likeliest first."""
    share, found = {}, {}
    for name in names:
        layouts = _backbone_names(name)
        found[name] = max(len(wanted & state.keys()) for wanted in layouts)
        share[name] = max(len(wanted & state.keys()) / len(wanted) for wanted in layouts)
    likely = [name for name in names if share[name] >= max(share.values()) - 0.1]
    # a ResNet-101 has all the names of a ResNet-50
    return sorted(likely, key=lambda name: (-share[name], -found[name], name))


@lru_cache(maxsize=64)
def _backbone_names(name: str) -> list[frozenset[str]]:
    """What each official repository calls the tensors of a backbone."""
    with torch.device("meta"):
        backbone = Backbone(name=name)
    keys = [f"backbone.{key}" for key in backbone.state_dict() if not key.endswith("num_batches_tracked")]
    return [
        frozenset(name for key in keys for name in keymap.official(key, 0, keymap.layout_of(backbone)))
        for keymap in (KEYMAPS["dino"], KEYMAPS["dino_relation"])
    ]


def _listed(file: str | Path | None) -> set[str]:
    """The models of the catalogue's files that are called so (downloads carry a prefix)."""
    name = "" if file is None else Path(file).name
    return {item.model for item in CATALOGUE.values() if item.file and name.endswith(item.file)}


def _candidates(name: str | None, facts: Mapping[str, Any], chosen: Mapping[str, Any]) -> Iterator[_Candidate]:
    """The models that the file may be of: as the file shows, and, in case that misleads, as they are registered.

    Raises:
        CheckpointError: the model that is named cannot be built with these options.
    """
    for each in [name] if name is not None else list_models():
        for disregard in (False, True):
            try:
                candidate = _candidate(each, facts, chosen, disregard)
            except (TypeError, ValueError) as error:
                if name is not None and disregard:
                    raise CheckpointError(str(error)) from error
                continue  # a model without one of these options, or one of which they are impossible
            if candidate is not None:
                yield candidate


def _candidate(name: str, facts: Mapping[str, Any], chosen: Mapping[str, Any], disregard: bool) -> _Candidate | None:
    """A registered model with the sizes of the file; None where its queries cannot be the model's.

    Raises:
        TypeError, ValueError: an option that the model does not have, or a value out of range.
    """
    base = model_config(name, **chosen)
    registered = base.flat()
    known = registered.keys() - set(chosen)
    differing = {key: value for key, value in facts.items() if key in known and registered[key] != value}
    options = {} if disregard else dict(differing)
    assumed: tuple[str, ...] = ()
    if "hidden_dim" in options and "num_heads" in known - set(facts):
        options["num_heads"], assumed = max(1, options["hidden_dim"] // _HEAD_DIM), ("num_heads",)
    sizes: dict[str, int] = {}
    if "class_rows" in facts and "num_classes" in known:
        sizes["num_classes"] = facts["class_rows"] - (base.architecture.class_slots - base.architecture.num_classes)
    if "query_rows" in facts and "num_queries" in known:
        groups = options.get("groups", registered.get("groups", 1))
        sizes["num_queries"], rest = divmod(facts["query_rows"], groups)
        if rest:
            return None
    elif registered.get("two_stage") and "num_queries" in known:
        # its queries are picked among the proposals of the encoder: no tensor has a row for each
        told = facts.get("told_queries")
        sizes["num_queries"] = base.architecture.num_queries if told is None else told
        assumed += ("num_queries",) if told is None else ()
    options = {**sizes, **options, **chosen}
    config = model_config(name, **options)
    shown = ((key, value) for key, value in config.flat().items() if key not in _INVISIBLE)
    kind = (entry(name).family, *shown)
    rank = (disregard, len(differing), config.architecture.num_queries != base.architecture.num_queries)
    return _Candidate(name, base.architecture.backbone, kind, rank, options, assumed)


def _facts(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the names and shapes show of the configuration; a fact counts for the models that have such an option."""
    facts: dict[str, Any] = {
        "pre_norm": "transformer.encoder.norm.weight" in state,
        "position_embedding": "learned" if "backbone.1.row_embed.weight" in state else "sine",
        "num_feature_levels": _count(state, r"(input_proj|neck\.convs)\.(\d+)\.0\.weight"),
        "encoder_layers": _count(state, r"transformer\.encoder\.layers\.(\d+)\.norm1\.weight"),
        "decoder_layers": _count(state, r"transformer\.decoder\.layers\.(\d+)\.norm1\.weight"),
        # proposals are always refined; DINO does it with heads that all layers share
        "refine_boxes": "transformer.enc_output.weight" in state or not _shared_heads(state),
        "reference_dim": _rows(state, r"(transformer\.decoder\.)?ref_point_head\.layers\.1\.bias") or 0,
        "hidden_dim": _rows(state, r"transformer\.encoder\.layers\.0\.norm1\.weight"),
        "ffn_dim": _rows(state, r"transformer\.encoder\.layers\.0\.linear1\.bias"),
        "class_rows": _rows(state, r"class_embed\.(0\.)?bias|transformer\.decoder\.class_head\.0\.bias"),
        "query_rows": _rows(state, r"(query_embed|transformer\.tgt_embed)\.weight"),
        "one_to_many_queries": _rows(state, r"transformer\.hybrid_tgt_embed\.weight"),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _training(arguments: Mapping[str, object]) -> dict[str, object]:
    """What the training arguments in a file say beyond the shapes."""
    plain = {key: value for key, value in arguments.items() if isinstance(value, int | float | None)}
    facts: dict[str, object] = {ours: plain[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in plain}
    if "nms" in plain:
        facts["nms"] = plain.get("nms_thresh", 0.7) if plain["nms"] else None
        facts["nms_decay"] = plain.get("nms_remove") if plain["nms"] else None
    if isinstance(plain.get("num_queries"), int):
        facts["told_queries"] = plain["num_queries"]  # counts only where no tensor shows it
    return facts


def _rows(state: Mapping[str, Tensor], pattern: str) -> int | None:
    """The first dimension of the first tensor of such a name."""
    return next((len(tensor) for name, tensor in state.items() if re.fullmatch(pattern, name) and tensor.dim()), None)


def _count(state: Mapping[str, Tensor], pattern: str) -> int | None:
    """How many tensors there are of such a name; None where there is none."""
    return sum(re.fullmatch(pattern, name) is not None for name in state) or None


def _shared_heads(state: Mapping[str, Tensor]) -> bool:
    """Whether the heads of all decoder layers are one tensor under several names."""
    layers: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        head = re.fullmatch(r"((?:class|bbox)_embed)\.\d+\.(.+)", name)
        if head:
            layers.setdefault(f"{head[1]}.{head[2]}", []).append(tensor)
    return bool(layers) and all(_same(first, other) for first, *others in layers.values() for other in others)


def _same(first: Tensor, other: Tensor) -> bool:
    return first is other or (not first.is_meta and torch.equal(first, other))
