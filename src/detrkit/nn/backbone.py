"""Image backbones from timm as DETR uses them: frozen batch norm, frozen early stages, a mask for every feature map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.errors import did_you_mean
from detrkit.nn.frozen_norm import freeze_batch_norm

__all__ = ["Backbone", "FeatureMap", "level_mask", "valid_sizes"]


@dataclass(frozen=True)
class FeatureMap:
    """One level: tensor (B, C, h, w), padding_mask (B, h, w) bool True = padding, stride in pixels a cell."""

    tensor: Tensor
    padding_mask: Tensor
    stride: int


def valid_sizes(padding_mask: Tensor) -> Tensor:
    """(B, 2) height and width in pixels of the valid area, which starts at the top left: from mask (B, H, W)."""
    valid = ~padding_mask
    return torch.stack((valid.any(2).sum(1), valid.any(1).sum(1)), dim=-1)


def level_mask(padding_mask: Tensor, stride: int, shape: tuple[int, int], *, exact: bool) -> Tensor:
    """The padding mask (B, H, W) of the images on a map of ``shape`` at ``stride``: (B, h, w).

    ``exact``: a cell is valid if it holds any valid pixel. Otherwise the official rule, nearest neighbour.
    """
    if exact:
        return _cells_mask(valid_sizes(padding_mask), stride, *shape)
    return F.interpolate(padding_mask[None].float(), size=shape).to(torch.bool)[0]


def _cells_mask(sizes: Tensor, stride: int, height: int, width: int) -> Tensor:
    cells = torch.div(sizes + stride - 1, stride, rounding_mode="floor")
    rows = torch.arange(height, device=sizes.device) >= cells[:, :1]
    columns = torch.arange(width, device=sizes.device) >= cells[:, 1:]
    return rows[:, :, None] | columns[:, None, :]


class Backbone(nn.Module):
    """A timm network that returns feature maps of chosen levels.

    Args:
        name: timm model name, with its weight tag where that matters ("resnet50.tv_in1k").
        num_levels: how many of the deepest levels to return, finest first (1: C5; 3: C3, C4, C5).
        dilation: stride 16 instead of 32 in the last stage ("DC5").
        frozen_batch_norm: batch norm as a fixed affine map (spec A2).
        frozen_stride: stages up to this stride are not trained (published: 4, i.e. stem and first stage; 0 trains
            everything; 32 freezes the whole backbone).
        mask_padding: keep the padding at zero in front of every spatial convolution, so that an image gives the same
            features alone and in a padded batch. False is the official behaviour, where padding leaks at the borders.
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
    ) -> None:
        super().__init__()
        if not timm.is_model(name.split(".")[0]):
            raise ValueError(f"timm has no backbone '{name}'.{did_you_mean(name, timm.list_models())[:200]}")
        out_indices = tuple(range(-num_levels, 0))
        options: dict[str, Any] = {"output_stride": 16} if dilation else {}
        body = timm.create_model(name, pretrained=False, features_only=True, out_indices=out_indices, **options)
        info: Any = body.feature_info
        self._freeze(body, info.info, frozen_stride)
        if frozen_batch_norm:
            freeze_batch_norm(body)
        self.body: nn.Module = body
        self.channels: list[int] = list(info.channels())
        self.strides: list[int] = list(info.reduction())
        self._sizes: Tensor | None = None
        self._canvas = 0
        self.mask_padding = mask_padding
        if mask_padding:
            for module in self.body.modules():
                spatial = isinstance(module, nn.Conv2d | nn.MaxPool2d) and module.kernel_size not in (1, (1, 1))
                if spatial:
                    module.register_forward_pre_hook(self._zero_padding)

    @staticmethod
    def _freeze(body: nn.Module, stages: Sequence[dict[str, Any]], frozen_stride: int) -> None:
        """Stops training of every parameter up to the end of the last stage within ``frozen_stride``."""
        frozen = [str(stage["module"]) for stage in stages if stage["reduction"] <= frozen_stride]
        names = [name for name, _ in body.named_parameters()]
        # timm flattens nested stages: the module "stages.0" may be called "stages_0" in a features_only network.
        prefixes = tuple(f"{name}." for module in frozen for name in (module, module.replace(".", "_")))
        last = max((index for index, name in enumerate(names) if name.startswith(prefixes)), default=-1)
        for parameter in list(body.parameters())[: last + 1]:
            parameter.requires_grad_(False)

    def _zero_padding(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x, *rest) = inputs
        if self._sizes is None:
            return inputs
        stride = self._canvas // x.shape[-2]
        mask = _cells_mask(self._sizes, stride, x.shape[-2], x.shape[-1])
        return (x.masked_fill(mask[:, None], 0.0), *rest)

    def forward(self, images: Tensor, padding_mask: Tensor) -> list[FeatureMap]:
        """images (B, 3, H, W), padding_mask (B, H, W) -> one map a level, finest first."""
        if self.mask_padding:
            return self._forward_masked(images, padding_mask)
        maps = []
        for tensor, stride in zip(self.body(images), self.strides, strict=True):
            mask = level_mask(padding_mask, stride, tensor.shape[-2:], exact=False)
            maps.append(FeatureMap(tensor, mask, stride))
        return maps

    def _forward_masked(self, images: Tensor, padding_mask: Tensor) -> list[FeatureMap]:
        # A canvas divisible by 32 gives every image the same phase, whatever else is in the batch: networks with
        # TensorFlow's "same" padding shift by one pixel between odd and even sizes.
        height, width = images.shape[-2:]
        extra = (0, -width % 32, 0, -height % 32)
        images = F.pad(images, extra)
        sizes = valid_sizes(padding_mask)
        self._canvas = images.shape[-2]
        self._sizes = sizes if bool(images.is_cuda or extra != (0, 0, 0, 0) or padding_mask.any()) else None
        try:
            tensors = self.body(images)
        finally:
            self._sizes = None
        maps = []
        for tensor, stride in zip(tensors, self.strides, strict=True):
            mask = _cells_mask(sizes, stride, *tensor.shape[-2:])
            maps.append(FeatureMap(tensor.masked_fill(mask[:, None], 0.0), mask, stride))
        return maps
