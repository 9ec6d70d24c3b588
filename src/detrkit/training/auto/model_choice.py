"""Choose the model for a data set, and its initial weights: a published detector where one is in the cache."""

from __future__ import annotations

from collections.abc import Mapping

from detrkit.errors import CheckpointError, RecipeError
from detrkit.models import Architecture, DetectorConfig, model_config
from detrkit.models.config import COMMON_OPTIONS
from detrkit.models.presets import DEFAULT_MODEL
from detrkit.nn.backbone.imagenet import PACKAGED_WEIGHTS
from detrkit.terminal import say
from detrkit.training.auto.draft import Draft
from detrkit.weights import CATALOGUE, OfficialFile, open_checkpoint, pulled_path, read_info
from detrkit.weights.find import find_checkpoint
from detrkit.weights.published.download import is_begun
from detrkit.weights.published.first_use import fetch_published, published_named

__all__ = ["available_checkpoint", "choose_model", "fetch_start"]

# Families that learn most from few images (DE-DETR paper, Tables 2 and 3), best first; others need to be named.
FAMILIES = ("de_conditional_detr", "de_detr", "conditional_detr", "detr")
# Options of the network; a published checkpoint fits whatever the other common options are.
_SIZES = {"hidden_dim", "num_heads", "ffn_dim", "encoder_layers", "decoder_layers"}
_ANY_VALUE = COMMON_OPTIONS - {"backbone", "dilation", "backbone_norm"} - _SIZES


def available_checkpoint(model: str | None = None, given: Mapping[str, object] | None = None) -> OfficialFile | None:
    """The best published detector in the cache; None where there is none.

    Args:
        model: registry name; if None, any model of :data:`FAMILIES`.
        given: dotted keys and values of the user that the checkpoint has to fit.
    """
    wanted = (
        item for item in _published_detectors() if (item.family in FAMILIES if model is None else item.model == model)
    )
    pulled = (item for item in wanted if pulled_path(item.name).is_file())
    return next((item for item in pulled if _conflict(item.model, given or {}) is None), None)


def choose_model(draft: Draft, *, gpu: bool) -> tuple[str, DetectorConfig[Architecture]]:
    """Choose the model and its initial weights; returns its name and its configuration so far.

    Raises:
        RecipeError: unknown model or option, or a value out of range.
        CheckpointError: ``model.init`` cannot be read.
    """
    name, init = draft.given.get("model.name"), draft.given.get("model.init")
    if name is not None:
        draft.choose("model", "model.name", name, "")
        if init is not None and (own := _own_options(init)) is not None and own[0] == name:
            _set_options(draft, *own)
    elif init is not None:
        name = draft.choose("model", "model.name", _model_of(draft, init), f"what {init} holds")
    else:
        name = _default_model(draft, gpu=gpu)
    found = None
    if "model.init" not in draft.given:
        found, unfit = available_checkpoint(name, draft.given), available_checkpoint(name)
        if found is None and unfit is not None:
            draft.note(f"  note: {unfit.name} is at hand, but {_conflict(name, draft.given)} asks for other weights")
        elif found is None and (published := published_named(name)) is not None:
            draft.note(f"  note: a better start, not at hand: {published.name} ({published.how_to_get})")
    if found is not None:
        reason = f"a published detector (AP {found.ap} on {found.data}); heads start new where classes differ"
        init = draft.choose("start", "model.init", found.name, reason)
    elif init is not None:
        draft.choose("start", "model.init", init, "")
    try:
        config = model_config(name, **draft.model_options())
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model: {error}") from error
    if init is None:
        # download only if the user asks for it, or names a model whose weights are in no package
        packaged = config.architecture.backbone in PACKAGED_WEIGHTS and "model.pretrained_backbone" not in draft.given
        draft.choose("ImageNet weights of the backbone", "model.pretrained_backbone", True, "few images need them")
        draft.set_default("model.backbone_weights", "package" if packaged else None)
    return name, config


def fetch_start(given: Mapping[str, object]) -> None:
    """Fetch the published detector that a training of a named model can start from, into the cache.

    Nothing is fetched where one is there, where there is none that a program can fetch, or where ``model.init``,
    ``model.pretrained_backbone`` or another option of the model asks for other weights. Without a connection the
    training starts without it; a line on stderr says so.

    Args:
        given: dotted keys and values of the user, with ``model.name``.

    Raises:
        CheckpointError: the download broke off (the next one goes on there), or the file is not the published one.
    """
    name = str(given.get("model.name"))
    published = published_named(name)
    if published is None or "model.init" in given or _conflict(name, given) is not None:
        return
    if available_checkpoint(name, given) is not None:
        return
    try:
        fetch_published(published)
    except CheckpointError as error:
        if published.address is not None and is_begun(published.address):
            raise
        say(f"{error}; this training starts without them")


def _conflict(model: str, given: Mapping[str, object]) -> str | None:
    """The first given key that a published checkpoint of this model does not fit; None where it fits."""
    registered = model_config(model).flat()
    for key, value in given.items():
        section, _, option = key.partition(".")
        if section != "model" or option in ("name", "init") or option in _ANY_VALUE:
            continue
        comparable = tuple(value) if isinstance(value, list) else value
        if option not in registered or registered[option] != comparable:
            return key
    return None


def _published_detectors() -> list[OfficialFile]:
    """Published checkpoints, ordered by family, then COCO first, ResNet-50 first, highest AP."""
    rank = {family: index for index, family in enumerate(FAMILIES)}
    return sorted(
        CATALOGUE.values(),
        key=lambda item: (
            rank.get(item.family, len(rank)),
            item.data != "COCO",
            not item.model.endswith("_r50"),
            -(item.ap or 0),
        ),
    )


def _model_of(draft: Draft, init: str) -> str:
    """The model of a checkpoint; options that differ from the registered model are set in the draft."""
    model = open_checkpoint(find_checkpoint(init))
    _set_options(draft, model.name, model.config)
    return model.name


def _own_options(init: str) -> tuple[str, DetectorConfig[Architecture]] | None:
    """Name and configuration of one of our checkpoints; None of others, and of one that the training will refuse."""
    try:
        info = read_info(find_checkpoint(init))
        return info.name, model_config(info.name, **info.config)
    except (CheckpointError, TypeError, ValueError):
        return None


def _set_options(draft: Draft, name: str, config: DetectorConfig[Architecture]) -> None:
    """The options of a checkpoint that differ from the registered model, where none are given."""
    registered = model_config(name).flat()
    for key, value in config.flat().items():
        if value != registered.get(key) and key != "num_classes":
            draft.set_default(f"model.{key}", list(value) if isinstance(value, tuple) else value)


def _default_model(draft: Draft, *, gpu: bool) -> str:
    found = available_checkpoint(given=draft.given)
    if gpu and found is not None:
        return str(draft.choose("model", "model.name", found.model, "a published detector of it is at hand"))
    if gpu and available_checkpoint() is not None:
        reason = "no published detector at hand fits the model options given"
    elif gpu:
        better = next(item for item in _published_detectors() if item.address is not None)
        reason = f"no published detector is at hand; a better start: detrkit weights pull {better.name}"
    else:
        reason = "there is no GPU, and full-size models take about ten times as long per step"
        if found is not None:
            reason += f"; {found.name} is at hand for --model {found.model}"
    return str(draft.choose("model", "model.name", DEFAULT_MODEL, reason))
