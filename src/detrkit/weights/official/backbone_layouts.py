"""Names of Swin, ConvNeXt and FocalNet tensors in official checkpoints, as rules over our names.

Our names are those of timm. Published files follow torchvision (Swin and ConvNeXt of the Relation-DETR repository) or
the authors of the network (FocalNet of the Relation-DETR repository, Swin of DINO).
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
    """Names, numbers of dimensions and constants of a backbone in official files."""

    rules: Rules = ()
    """Rules over our names, as in :class:`~detrkit.weights.official.keymaps.KeyMap`."""
    dims: tuple[tuple[str, int], ...] = ()
    """Pattern over an official name -> number of dimensions there; dimensions of size 1 are added at the end, or the
    last dimensions are flattened."""
    constants: str | None = None
    """Pattern over our names of buffers that official files store and our state dict does not."""

    def constants_of(self, model: nn.Module) -> dict[str, Tensor]:
        """Buffers that official files store and our state dict does not, under our names."""
        if self.constants is None:
            return {}
        return {name: value for name, value in model.named_buffers() if re.fullmatch(self.constants, name)}

    def reshape(self, name: str, value: Tensor) -> Tensor:
        """Reshape a tensor to the number of dimensions it has under the official ``name``."""
        dims = next((dims for pattern, dims in self.dims if re.fullmatch(pattern, name)), value.dim())
        if dims == value.dim():
            return value  # not a copy, so that aliases stay one tensor
        if dims < value.dim():
            return value.flatten(dims - 1)
        return value.reshape(*value.shape, *[1] * (dims - value.dim()))


_INDEX = rf"{_OURS}.+\.relative_position_index"

# torchvision numbers the stem, the stages and the downsampling layers consecutively.
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

# The authors of Swin and FocalNet place downsampling at the end of a stage, timm places it at the start of the next.
_DOWNSAMPLING: Rules = tuple(
    (rf"{_OURS}layers\.{stage}\.downsample\.(.+)", (rf"backbone.0.layers.{stage - 1}.downsample.\1",))
    for stage in _STAGES[1:]
)
_FOCALNET = BackboneLayout(
    rules=(
        (rf"{_OURS}stem\.(.+)", (r"backbone.0.patch_embed.\1",)),
        *_DOWNSAMPLING,
        (rf"{_OURS}(layers\.\d+\.blocks\.\d+)\.ls(\d)\.gamma", (r"backbone.0.\1.gamma_\2",)),
        (rf"{_OURS}(layers\.\d+\.blocks\.\d+\.norm\d)_post\.(.+)", (r"backbone.0.\1.\2",)),
        (rf"{_OURS}(layers\.\d+\.blocks\.\d+\.modulation)\.norm\.(.+)", (r"backbone.0.\1.ln.\2",)),
        (rf"{_OURS}(.+)", (r"backbone.0.\1",)),
        (r"backbone\.norms\.(\d)\.(.+)", (r"backbone.1.norm\1.\2",)),
    ),
    # 1x1 convolutions of timm are linear layers in the published code
    dims=((r"backbone\.0\.layers\..+\.(f|proj|fc1|fc2)\.weight(?<!downsample\.proj\.weight)", 2),),
)
_SWIN = BackboneLayout(
    rules=(
        *_DOWNSAMPLING,
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
