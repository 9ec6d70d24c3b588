"""Image backbones from timm as DETR uses them: frozen batch norm, frozen early stages, a mask for every feature map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers.format import Format
from timm.layers.norm import LayerNorm2d
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.errors import did_you_mean
from detrkit.nn.backbone.families import Family, family_of
from detrkit.nn.backbone.feature_pyramid import SimpleFeaturePyramid
from detrkit.nn.backbone.frozen_norm import freeze_batch_norm
from detrkit.nn.backbone.padding import (
    CheckpointedBlocks,
    Padding,
    cells_mask,
    use_padding,
    valid_sizes,
    zero_padding_in,
)
from detrkit.nn.backbone.same_padding import SameConv2d
from detrkit.nn.backbone.shifted_windows import ShiftedWindowBlock
from detrkit.ops.zeroed import zeroed

__all__ = ["Backbone", "FeatureMap", "level_mask"]


@dataclass(frozen=True)
class FeatureMap:
    """One level: tensor (B, C, h, w), padding_mask (B, h, w) bool (True = padding), stride in pixels per cell."""

    tensor: Tensor
    padding_mask: Tensor
    stride: int


def level_mask(padding_mask: Tensor, stride: int, shape: tuple[int, int], *, exact: bool) -> Tensor:
    """Resize the padding mask (B, H, W) of images to a map of ``shape`` at ``stride``: (B, h, w).

    ``exact``: a cell is valid if it contains any valid pixel; else the official rule, nearest neighbour.
    """
    if exact:
        return cells_mask(valid_sizes(padding_mask), stride, *shape)
    return F.interpolate(padding_mask[None].float(), size=shape).to(torch.bool)[0]


_STRIDES = (4, 8, 16, 32)  # of the levels of a pyramid for plain networks
_NORM_EPS = 1e-5


class Backbone(nn.Module):
    """A timm network that returns feature maps of chosen levels.

    A map of stride s has ceil(side / s) cells, whatever the network. Plain vision transformers get their levels from a
    :class:`~detrkit.nn.backbone.feature_pyramid.SimpleFeaturePyramid`.

    Args:
        name: timm model name, with its weight tag if it matters ("resnet50.tv_in1k").
        num_levels: number of levels to return, the deepest ones, finest first (1: C5; 3: C3 to C5; 4: C2 to C5).
        dilation: stride 16 instead of 32 in the last stage ("DC5").
        frozen_batch_norm: batch norm as a fixed affine map.
        frozen_stride: stages up to this stride are not trained. Published: 4, i.e. stem and first stage, in networks
            with patches also the patch merging after it. 0 trains everything; 32 freezes the whole network.
        mask_padding: set padding to zero before every spatial convolution and exclude it from windows, so that the
            features of an image do not depend on its batch. False is the official behaviour, where padding leaks at
            the borders.
        level_norm: layer norm over the channels of every returned map (DINO with Swin, Relation-DETR with FocalNet).
        drop_path: rate of stochastic depth in the last block; it grows linearly from 0 in the first block.
        checkpointing: recompute activations in the backward pass instead of keeping them.

    Raises:
        ValueError: timm has no such network, or the network does not support an option.
    """

    def __init__(
        self,
        *,
        name: str,
        num_levels: int = 1,
        dilation: bool = False,
        frozen_batch_norm: bool = True,
        frozen_stride: int = 4,
        mask_padding: bool = False,
        level_norm: bool = False,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not timm.is_model(name.split(".")[0]):
            raise ValueError(f"timm has no backbone '{name}'.{did_you_mean(name, timm.list_models())[:200]}")
        self.name = name
        self.family = family_of(name)
        if mask_padding and not self.family.maskable:
            raise ValueError(
                f"mask_backbone_padding: '{name}' averages or attends over the whole canvas, so that padding cannot be "
                "kept out of it; set it to False"
            )
        body = _network(self.family, name, num_levels, dilation=dilation, drop_path=drop_path)
        info: Any = body.feature_info
        SameConv2d.convert_in(body)
        self._freeze(body, info.info, frozen_stride)
        if frozen_batch_norm:
            freeze_batch_norm(body)
        if checkpointing and mask_padding:
            for stage in _stages(body, [stage["module"] for stage in info.info]):
                CheckpointedBlocks.convert_in(stage)
        elif checkpointing:
            network: Any = getattr(body, "model", body)
            network.set_grad_checkpointing()
        self.body: nn.Module = body
        self._channels_last = getattr(body, "output_fmt", Format.NCHW) == Format.NHWC
        self.channels: list[int] = list(info.channels())
        self.strides: list[int] = list(info.reduction())
        self.pyramid: SimpleFeaturePyramid | None = None
        if self.family.plain:
            self._build_pyramid(_STRIDES[-num_levels:])
        self.norms: nn.ModuleDict | None = None
        if level_norm:
            # named by the stage, as in official checkpoints
            first = len(_STRIDES) - num_levels
            self.norms = nn.ModuleDict(
                {str(first + level): LayerNorm2d(width, eps=_NORM_EPS) for level, width in enumerate(self.channels)}
            )
        self.mask_padding = mask_padding
        if mask_padding:
            zero_padding_in(body)

    def _build_pyramid(self, strides: Sequence[int]) -> None:
        (width,), (stride,) = self.channels, self.strides
        if stride & (stride - 1):
            raise ValueError(f"'{self.name}' has patches of {stride} pixels; a feature pyramid needs a power of two")
        self.pyramid = SimpleFeaturePyramid(in_channels=width, stride=stride, strides=strides)
        self.channels, self.strides = [self.pyramid.dim] * len(strides), list(strides)

    @staticmethod
    def _freeze(body: nn.Module, stages: Sequence[dict[str, Any]], frozen_stride: int) -> None:
        """Freeze all parameters up to the end of the last stage within ``frozen_stride``."""
        within = [stage["reduction"] <= frozen_stride for stage in stages]
        if all(within):
            body.requires_grad_(False)
        frozen = [stage["module"] for stage, is_within in zip(stages, within, strict=True) if is_within]
        # patch merging is at the start of the next stage; official code freezes it with the stage before
        frozen += [f"{stages[len(frozen)]['module']}.downsample"] if 0 < len(frozen) < len(stages) else []
        names = [name for name, _ in body.named_parameters()]
        prefixes = tuple(f"{name}." for module in frozen for name in _names_in(body, module))
        last = max((index for index, name in enumerate(names) if name.startswith(prefixes)), default=-1)
        for parameter in list(body.parameters())[: last + 1]:
            parameter.requires_grad_(False)

    def forward(self, images: Tensor, padding_mask: Tensor) -> list[FeatureMap]:
        """images (B, 3, H, W), padding_mask (B, H, W) -> one map per level, finest first."""
        if self.mask_padding:
            return self._forward_masked(images, padding_mask)
        height, width = images.shape[-2:]
        divisor = self.family.divisor
        maps = []
        tensors = self._levels(F.pad(images, (0, -width % divisor, 0, -height % divisor)))
        for tensor, stride in zip(tensors, self.strides, strict=True):
            if divisor > 1:  # cut off cells that are entirely outside the canvas
                tensor = tensor[..., : (height + stride - 1) // stride, : (width + stride - 1) // stride]
            mask = level_mask(padding_mask, stride, (tensor.shape[-2], tensor.shape[-1]), exact=False)
            maps.append(FeatureMap(tensor, mask, stride))
        return maps

    def _levels(self, images: Tensor) -> list[Tensor]:
        tensors: list[Tensor] = self.body(images)
        if self._channels_last:
            tensors = [tensor.permute(0, 3, 1, 2) for tensor in tensors]
        if self.pyramid is not None:
            tensors = self.pyramid(tensors[-1])
        if self.norms is not None:
            tensors = [norm(tensor) for norm, tensor in zip(self.norms.values(), tensors, strict=True)]
        return tensors

    def _forward_masked(self, images: Tensor, padding_mask: Tensor) -> list[FeatureMap]:
        # A canvas divisible by 32 gives every image the same phase in every batch: networks with TensorFlow's "same"
        # padding shift by one pixel between odd and even sizes.
        height, width = ((side + 31) // 32 * 32 for side in images.shape[-2:])
        extra = (0, width - images.shape[-1], 0, height - images.shape[-2])
        images = F.pad(images, extra)
        sizes = valid_sizes(padding_mask)
        with use_padding(Padding(sizes, images.shape[-2]) if self._has_padding(padding_mask, extra) else None):
            tensors = self._levels(images)
        maps = []
        for tensor, stride in zip(tensors, self.strides, strict=True):
            mask = cells_mask(sizes, stride, *tensor.shape[-2:])
            maps.append(FeatureMap(zeroed(tensor, mask[:, None]), mask, stride))
        return maps

    def _has_padding(self, padding_mask: Tensor, extra: tuple[int, ...]) -> bool:
        """Whether there is padding; also True if a check would need device synchronisation or break a trace."""
        windows = self.family.name == "swin"  # they always add cells to fill windows
        if windows or padding_mask.device.type != "cpu" or torch.compiler.is_compiling():
            return True
        return extra != (0, 0, 0, 0) or bool(padding_mask.any())


def _stages(body: nn.Module, stage_names: Sequence[str]) -> list[nn.Module]:
    """Return the stages of a network: those that timm names for their maps, and the modules between them."""
    names = dict(body.named_modules())
    stages: dict[str, nn.Module] = {}
    for module in stage_names:
        name = next(name for name in _names_in(body, module) if name in names)
        parent, dot, _ = name.rpartition(".")
        siblings = {f"{parent}.{child}": stage for child, stage in names[parent].named_children()} if dot else {}
        stages |= {**siblings, name: names[name]}
    return list(stages.values())


def _network(family: Family, name: str, num_levels: int, *, dilation: bool, drop_path: float) -> nn.Module:
    """Build the timm network, without weights and head, as a module that returns a list of maps (B, C, h, w)."""
    options: dict[str, Any] = dict(family.options)
    levels = tuple(range(-num_levels, 0))
    if dilation:
        options["output_stride"] = 16
    try:
        if family.name == "any":
            if drop_path:
                options["drop_path_rate"] = drop_path
            network: nn.Module = timm.create_model(
                name, pretrained=False, features_only=True, out_indices=levels, **options
            )
            return network
        model = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path, **options)
    except (NotImplementedError, TypeError) as error:
        requested = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ValueError(f"timm's '{name}' cannot be built with {requested}: {error}") from error
    ShiftedWindowBlock.convert_in(model)
    # plain networks: only the last map, after the final norm
    return FeatureGetterNet(model, out_indices=(-1,) if family.plain else levels, norm=family.plain)


def _names_in(body: nn.Module, module: str) -> tuple[str, ...]:
    """Return the possible names of a timm module inside a network that returns feature maps."""
    return module, module.replace(".", "_", 1), f"model.{module}"
