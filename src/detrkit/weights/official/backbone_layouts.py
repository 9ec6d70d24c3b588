"""What official checkpoints call the tensors of backbones other than ResNets, as rules over our names.

Ours are timm's. Published files follow torchvision (Swin, ConvNeXt of the Relation-DETR repository) or the networks'
authors (FocalNet there, Swin of DINO).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["AUTHORS_BACKBONES", "RELATION_BACKBONES", "BackboneLayout"]

Rules = tuple[tuple[str, tuple[str, ...]], ...]

_OURS = r"backbone\.body\.model\."
_STAGES = range(4)


@dataclass(frozen=True)
class BackboneLayout:
    """Rules over our names, as in :class:`~detrkit.weights.official.keymaps.KeyMap`, and what names alone do not say.

    dims: pattern over an official name -> how many dimensions the tensor has there; those at the end are split off
    with size 1 or merged · constants: pattern over our names of buffers that only official files store.
    """

    rules: Rules = ()
    dims: tuple[tuple[str, int], ...] = ()
    constants: str | None = None

    def constants_of(self, model: nn.Module) -> dict[str, Tensor]:
        """Buffers under our names that our state dict leaves out and official files store."""
        if self.constants is None:
            return {}
        return {name: value for name, value in model.named_buffers() if re.fullmatch(self.constants, name)}

    def shaped(self, name: str, value: Tensor) -> Tensor:
        """A tensor with the dimensions that it has under the official ``name``."""
        dims = next((dims for pattern, dims in self.dims if re.fullmatch(pattern, name)), value.dim())
        if dims == value.dim():
            return value  # itself, so that aliases stay one tensor
        if dims < value.dim():
            return value.flatten(dims - 1)
        return value.reshape(*value.shape, *[1] * (dims - value.dim()))


_INDEX = rf"{_OURS}.+\.relative_position_index"

# torchvision numbers stem, stages and what is between them through.
_TORCHVISION_SWIN = BackboneLayout(
    rules=(
        (rf"{_OURS}patch_embed\.proj\.(.+)", (r"backbone.0.features.0.0.\1",)),
        (rf"{_OURS}patch_embed\.norm\.(.+)", (r"backbone.0.features.0.2.\1",)),
        *(
            rule
            for stage in _STAGES
            for block in (rf"{_OURS}layers\.{stage}\.blocks\.(\d+)\.",)
            for rule in (
                (rf"{_OURS}layers\.{stage}\.downsample\.(.+)", (rf"backbone.0.features.{2 * stage}.\1",)),
                (rf"{block}mlp\.fc1\.(.+)", (rf"backbone.0.features.{2 * stage + 1}.\1.mlp.0.\2",)),
                (rf"{block}mlp\.fc2\.(.+)", (rf"backbone.0.features.{2 * stage + 1}.\1.mlp.3.\2",)),
                (rf"{block}(.+)", (rf"backbone.0.features.{2 * stage + 1}.\1.\2",)),
            )
        ),
    ),
    dims=((r".+\.relative_position_index", 1),),
    constants=_INDEX,
)

_CONVNEXT_BLOCK = {"conv_dw": "block.0", "norm": "block.2", r"mlp\.fc1": "block.3", r"mlp\.fc2": "block.5"}
_TORCHVISION_CONVNEXT = BackboneLayout(
    rules=(
        (rf"{_OURS}stem\.(.+)", (r"backbone.features.0.\1",)),
        *(
            rule
            for stage in _STAGES
            for block in (rf"{_OURS}stages\.{stage}\.blocks\.(\d+)\.",)
            for rule in (
                (rf"{_OURS}stages\.{stage}\.downsample\.(.+)", (rf"backbone.features.{2 * stage}.\1",)),
                (rf"{block}gamma", (rf"backbone.features.{2 * stage + 1}.\1.layer_scale",)),
                *(
                    (rf"{block}{ours}\.(.+)", (rf"backbone.features.{2 * stage + 1}.\1.{theirs}.\2",))
                    for ours, theirs in _CONVNEXT_BLOCK.items()
                ),
            )
        ),
    ),
    dims=((r".+\.layer_scale", 3),),
)

# The authors of Swin and of FocalNet place the step to the next stage at the end of a stage, timm at its start.
_STEPS: Rules = tuple(
    (rf"{_OURS}layers\.{stage}\.downsample\.(.+)", (rf"backbone.0.layers.{stage - 1}.downsample.\1",))
    for stage in _STAGES[1:]
)
_FOCALNET = BackboneLayout(
    rules=(
        (rf"{_OURS}stem\.(.+)", (r"backbone.0.patch_embed.\1",)),
        *_STEPS,
        (rf"{_OURS}(layers\.\d+\.blocks\.\d+)\.ls(\d)\.gamma", (r"backbone.0.\1.gamma_\2",)),
        (rf"{_OURS}(layers\.\d+\.blocks\.\d+\.norm\d)_post\.(.+)", (r"backbone.0.\1.\2",)),
        (rf"{_OURS}(layers\.\d+\.blocks\.\d+\.modulation)\.norm\.(.+)", (r"backbone.0.\1.ln.\2",)),
        (rf"{_OURS}(.+)", (r"backbone.0.\1",)),
        (r"backbone\.norms\.(\d)\.(.+)", (r"backbone.1.norm\1.\2",)),
    ),
    # timm's 1x1 convolutions are linear layers there
    dims=((r"backbone\.0\.layers\..+\.(f|proj|fc1|fc2)\.weight(?<!downsample\.proj\.weight)", 2),),
)
_SWIN = BackboneLayout(
    rules=(
        *_STEPS,
        (rf"{_OURS}(.+)", (r"backbone.0.\1",)),
        (r"backbone\.norms\.(\d)\.(.+)", (r"backbone.0.norm\1.\2",)),
    ),
    constants=_INDEX,
)

RELATION_BACKBONES: Mapping[str, BackboneLayout] = {
    "swin": _TORCHVISION_SWIN,
    "convnext": _TORCHVISION_CONVNEXT,
    "focalnet": _FOCALNET,
}
AUTHORS_BACKBONES: Mapping[str, BackboneLayout] = {"swin": _SWIN}
