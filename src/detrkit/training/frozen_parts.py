"""Which parts of a model a run trains: frozen parts (``model.freeze``) and LoRA (``model.lora``)."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial

from torch import nn

from detrkit.config import Recipe
from detrkit.errors import RecipeError, did_you_mean
from detrkit.models import Detector
from detrkit.models.detector import in_backbone
from detrkit.nn.lora import add_low_rank, is_low_rank

__all__ = ["choose_parts", "trainable_words"]

_HEADS = (
    *("class_embed", "bbox_embed", "enc_class_embed", "enc_bbox_embed", "one_to_many_", "denoising"),
    *("query_embed", "tgt_embed", "refpoint_embed", "mask_head", "bbox_attention"),
)
_GEOMETRY = ("sampling_offsets", "attention_weights")  # of deformable attention: where it looks, not what it projects


def _in_heads(name: str) -> bool:
    return name.startswith(_HEADS) or ".class_embed." in name or ".bbox_embed." in name


PARTS: dict[str, Callable[[str], bool]] = {
    "backbone": in_backbone,
    "encoder": lambda name: name.startswith("encoder."),
    "decoder": lambda name: name.startswith("decoder.") and not _in_heads(name),
    "all_but_heads": lambda name: not _in_heads(name),
}
"""Parts that have a name: whether a parameter belongs to it."""


def choose_parts(model: Detector, recipe: Recipe) -> None:
    """Freeze what the recipe says and add its LoRA; without ``model.freeze``, LoRA freezes all but the heads.

    Raises:
        RecipeError: a pattern that no parameter has, or nothing is left to train.
    """
    section = recipe.model
    patterns = section.freeze
    if section.lora is not None:
        add_low_rank(model, rank=section.lora, wanted=_takes_low_rank)
        patterns = ["all_but_heads"] if patterns is None else patterns
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns or ():
        belongs = PARTS.get(pattern) or partial(fnmatchcase, pat=pattern)
        if not any(belongs(name) for name in names):
            tops = {name.split(".")[0] for name in names}
            raise RecipeError(
                f"{recipe.source}: model.freeze = '{pattern}': no parameter of {model.name} is called so; it takes "
                f"{', '.join(PARTS)} and patterns such as 'encoder.layers.0.*'.{did_you_mean(pattern, tops)}"
            )
        for name, parameter in model.named_parameters():
            if belongs(name) and not is_low_rank(name):
                parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError(f"{recipe.source}: model.freeze = {patterns}: nothing is left to train")


def _takes_low_rank(name: str) -> bool:
    """Whether a module is a projection of attention or of a feed-forward block, by its name."""
    return (
        name.startswith(("encoder.layers.", "decoder.layers.")) and not name.endswith(_GEOMETRY) and not _in_heads(name)
    )


def trainable_words(model: nn.Module, parameters: int, recipe: Recipe) -> str:
    """``7.7 M parameters to train``, and of what, where the recipe freezes parts of it.

    parameters: number of those that have a learning rate.
    """
    section = recipe.model
    if section.freeze is None and section.lora is None:
        return f"{parameters / 1e6:.1f} M parameters to train"
    parts = [f"LoRA of rank {section.lora}"] * (section.lora is not None)
    parts.append(f"frozen: {', '.join(section.freeze or ['all_but_heads'])}")
    every = sum(parameter.numel() for parameter in model.parameters())
    return f"{parameters / 1e6:.2f} M of {every / 1e6:.2f} M parameters to train ({', '.join(parts)})"
