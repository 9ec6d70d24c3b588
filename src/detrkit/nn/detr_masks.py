"""DETR's masks (Carion et al., ECCV 2020, section 4.4): where a query attends in the memory, refined to 1/4.

Every query has attention maps of its own over the memory. A small convolutional pyramid takes them, together with the
projected map of the backbone, to 1/4 of the image's size. That is a network for every query, about a hundred times the
work of one map: :class:`ConvolvedMasks` runs it for the masks that are asked for, a few at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.nn.backbone import FeatureMap
from detrkit.nn.masks import sample_points
from detrkit.nn.projection import MaskedGroupNorm
from detrkit.nn.tokens import Tokens

__all__ = ["ConvolvedMasks", "DETRMaskHead", "MaskConvolution"]

_ROWS_AT_ONCE = 16  # masks that are computed at a time
_NORM_GROUPS = 8
_MERGES = 3  # maps of the backbone that are merged, in front of the last convolutions


class MaskConvolution(nn.Module):
    """Five convolutions; in front of each of the last three, a finer map of the backbone is added.

    Args:
        in_dim: channels of the first map.
        dim: width of the transformer; the last four convolutions give a half of it, a quarter, and so on.
    """

    def __init__(self, *, in_dim: int, dim: int) -> None:
        super().__init__()
        widths = [in_dim, in_dim, *(dim // 2**step for step in range(1, _MERGES + 2))]
        self.layers = nn.ModuleList(nn.Conv2d(least, most, 3, padding=1) for least, most in pairwise(widths))
        # published widths are multiples of 8; those of small models may not be
        self.norms = nn.ModuleList(MaskedGroupNorm(math.gcd(_NORM_GROUPS, width), width) for width in widths[1:])
        self.out = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for conv in (*self.layers, self.out):
            nn.init.kaiming_uniform_(conv.get_parameter("weight"), a=1)
            nn.init.zeros_(conv.get_parameter("bias"))

    def forward(self, x: Tensor, maps: Sequence[FeatureMap], *, mask_padding: bool = False) -> Tensor:
        """Logits (M, H, W) of M masks.

        Args:
            x: (M, in_dim, h, w), in padding 0 if ``mask_padding``.
            maps: that of the first convolutions, of which the padding counts, and the finer ones to add.
            mask_padding: keep the padding at zero and out of the statistics of the norms.
        """
        first = len(self.layers) - _MERGES
        level = maps[0]
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            if index >= first:
                level = maps[index - first + 1]
                x = level.tensor + F.interpolate(x, size=level.tensor.shape[-2:])
                if mask_padding:
                    x = x.masked_fill(level.padding_mask[:, None], 0.0)
            x = F.relu(norm(layer(x), level.padding_mask if mask_padding else None))
        logits: Tensor = self.out(x)
        return logits[:, 0]


@dataclass(frozen=True)
class ConvolvedMasks:
    """Lazy masks of N queries in L layers.

    Attributes:
        queries: (L, B, N, C), what each query looks for.
        keys: (B, S, C), what each token of the memory answers to.
        maps: the projected map of the backbone, of the memory's shape, and the finer maps to add.
        convolution: makes a mask of attention maps.
        num_heads: attention maps per query.
        mask_padding: see :class:`MaskConvolution`.
    """

    queries: Tensor
    keys: Tensor
    maps: tuple[FeatureMap, ...]
    convolution: MaskConvolution
    num_heads: int
    mask_padding: bool = False

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """All that masks depend on, the parameters of the convolutions too."""
        return self.queries, self.keys, *(level.tensor for level in self.maps), *self.convolution.parameters()

    def __getitem__(self, queries: slice) -> ConvolvedMasks:
        """The masks of a part of the queries."""
        return replace(self, queries=self.queries[:, :, queries])

    def dense(self) -> Tensor:
        """Logits (B, N, h, w) of the last layer's masks."""
        batch, number = self.queries.shape[1:3]
        image = torch.arange(batch, device=self.queries.device).repeat_interleave(number)
        query = torch.arange(number, device=self.queries.device).repeat(batch)
        return self.rows(torch.full_like(image, -1), image, query).unflatten(0, (batch, number))

    def rows(self, layer: Tensor, image: Tensor, query: Tensor) -> Tensor:
        """Logits (M, h, w) of the masks that three index vectors (M,) choose."""
        starts = range(0, max(1, len(layer)), _ROWS_AT_ONCE)
        parts = (slice(start, start + _ROWS_AT_ONCE) for start in starts)
        return torch.cat([self._convolved(layer[part], image[part], query[part]) for part in parts])

    def of_image(self, image: int, layers: Iterable[int], points: Tensor) -> Iterator[Tensor]:
        """Logits (N, P) float32 of all masks of an image, layer by layer, at points (P, 2) in [0, 1] of the canvas."""
        everyone = torch.arange(self.queries.shape[2], device=self.queries.device)
        for layer in layers:
            sampled = []
            for query in everyone.split(_ROWS_AT_ONCE):
                rows = self._convolved(torch.full_like(query, layer), torch.full_like(query, image), query)
                sampled.append(sample_points(rows[None], points[None])[0])
            yield torch.cat(sampled)

    def _convolved(self, layer: Tensor, image: Tensor, query: Tensor) -> Tensor:
        dtype = self.convolution.out.weight.dtype  # autocast has ended by the time that losses ask for masks
        first, *finer = (
            FeatureMap(level.tensor[image].to(dtype), level.padding_mask[image], level.stride) for level in self.maps
        )
        attention = self._attention(self.queries[layer, image, query].to(dtype), image, first)
        x = torch.cat((first.tensor, attention), dim=1)
        logits: Tensor = self.convolution(x, [first, *finer], mask_padding=self.mask_padding)
        return logits

    def _attention(self, queries: Tensor, image: Tensor, level: FeatureMap) -> Tensor:
        """(M, heads, h, w), of queries (M, C): a softmax over all heads and tokens together."""
        of_heads = queries.unflatten(1, (self.num_heads, -1))
        keys = self.keys[image].to(queries.dtype).unflatten(2, (self.num_heads, -1))
        logits = torch.einsum("mnd,msnd->mns", of_heads * of_heads.shape[-1] ** -0.5, keys)
        logits = logits.masked_fill(level.padding_mask.flatten(1)[:, None], -torch.inf)
        weights = logits.flatten(1).softmax(-1).view(logits.shape)
        return weights.unflatten(2, level.tensor.shape[-2:])


class DETRMaskHead(nn.Module):
    """Masks of all decoded queries of a detector that keeps the projected map in its memory.

    Args:
        dim: channels of memory and queries.
        num_heads: attention maps per query.
        channels: of the three maps of the backbone that are finer than the memory, the coarsest first.
        mask_padding: keep the padding out, so that an image has the same masks alone and in a batch. False is the
            official behaviour.
    """

    def __init__(self, *, dim: int, num_heads: int, channels: Sequence[int], mask_padding: bool = False) -> None:
        super().__init__()
        if len(channels) != _MERGES:
            raise ValueError(f"channels must be those of {_MERGES} maps, got {len(channels)}")
        self.queries, self.keys = nn.Linear(dim, dim), nn.Linear(dim, dim)
        for linear in (self.queries, self.keys):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.adapters = nn.ModuleList(
            nn.Conv2d(width, dim // 2 ** (step + 1), kernel_size=1) for step, width in enumerate(channels)
        )
        for adapter in self.adapters:
            nn.init.kaiming_uniform_(adapter.get_parameter("weight"), a=1)
            nn.init.zeros_(adapter.get_parameter("bias"))
        self.convolution = MaskConvolution(in_dim=dim + num_heads, dim=dim)
        self.num_heads, self.mask_padding = num_heads, mask_padding

    def forward(self, hidden: Sequence[Tensor], memory: Tokens, maps: Sequence[FeatureMap]) -> list[ConvolvedMasks]:
        """States (L, B, N, C) of sets of queries, the memory, four maps of the backbone, finest first -> masks."""
        coarsest, *finer = reversed(maps)
        levels = [replace(coarsest, tensor=memory.projected_maps()[0])]
        levels += [
            replace(level, tensor=adapter(level.tensor)) for adapter, level in zip(self.adapters, finer, strict=True)
        ]
        if self.mask_padding:
            levels = [
                replace(level, tensor=level.tensor.masked_fill(level.padding_mask[:, None], 0.0)) for level in levels
            ]
        keys = self.keys(memory.content)
        return [
            ConvolvedMasks(
                queries=self.queries(states),
                keys=keys,
                maps=tuple(levels),
                convolution=self.convolution,
                num_heads=self.num_heads,
                mask_padding=self.mask_padding,
            )
            for states in hidden
        ]
