"""Masks of decoded queries (Mask2Former, Cheng et al., CVPR 2022; MaskDINO, Li et al., CVPR 2023, section 3.2).

The mask of a query is a product: its embedding with an embedding of every pixel at 1/4 of the image's size. The product
of all queries is large (900 queries at 1024 x 1024: 225 MiB per layer) and hardly ever needed, so
:class:`EmbeddedMasks` keeps the factors. It multiplies out chosen rows, or all queries at chosen points: sampling is
linear, so that sampling the pixels first gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.nn.backbone import FeatureMap
from detrkit.nn.heads import MLP
from detrkit.nn.projection import MaskedGroupNorm
from detrkit.nn.tokens import Tokens
from detrkit.ops.zeroed import zeroed

__all__ = ["EmbeddedMasks", "MaskBranch", "PixelEmbedding", "positions_by_image", "sample_points"]

Border = Literal["border", "zeros"]


def sample_points(maps: Tensor, points: Tensor, *, border: Border = "border") -> Tensor:
    """Bilinear samples of maps (N, C, h, w) at points (N, P, 2), x and y in [0, 1] of the map: (N, C, P).

    border: beyond the centres of the outermost cells a map goes on as it ends ("border", as when a map is resized), or
    falls to 0 ("zeros", as Mask2Former and MaskDINO train).

    Computed in float32: half precision would move a point by up to half a cell of a map of 256 cells.
    """
    grid = 2 * points.float()[:, :, None] - 1
    return F.grid_sample(maps.float(), grid, padding_mode=border, align_corners=False)[..., 0]


def positions_by_image(image: Tensor) -> list[tuple[int, Tensor]]:
    """Every image of an index vector (M,), in order, with the positions (n,) at which it stands.

    The positions are on the host, and so should ``image`` be: on another device it is copied, which waits for it.
    """
    image = image.cpu()
    return [(index, (image == index).nonzero()[:, 0]) for index in image.unique().tolist()]


class PixelEmbedding(nn.Module):
    """Embedding of every pixel: the backbone's map at 1/4 and the finest level of the memory, one step of a pyramid.

    Args:
        in_dim: channels of the map of the backbone.
        dim: channels of the memory, and of the embedding.
    """

    def __init__(self, *, in_dim: int, dim: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(in_dim, dim, kernel_size=1, bias=False)
        self.lateral_norm = MaskedGroupNorm(32, dim)
        self.smooth = nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False)
        self.smooth_norm = MaskedGroupNorm(32, dim)
        self.embed = nn.Conv2d(dim, dim, kernel_size=1)
        for conv in (self.lateral, self.smooth, self.embed):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        assert self.embed.bias is not None
        nn.init.zeros_(self.embed.bias)

    def forward(self, fine: FeatureMap, memory: Tensor) -> Tensor:
        """fine (B, in_dim, h, w), memory (B, dim, h / s, w / s) with s a whole number -> (B, dim, h, w).

        Padding is kept out, so that an image has one embedding alone and in a batch.
        """
        mask = fine.padding_mask
        lateral = self.lateral_norm(self.lateral(fine.tensor), mask)
        step = -(-fine.tensor.shape[-1] // memory.shape[-1])
        coarse = _enlarged(_continued(memory, mask, step), step)[..., : lateral.shape[-2], : lateral.shape[-1]]
        mixed = zeroed(lateral + coarse, mask[:, None])
        embedded: Tensor = self.embed(F.relu(self.smooth_norm(self.smooth(mixed), mask)))
        return embedded


def _continued(memory: Tensor, mask: Tensor, step: int) -> Tensor:
    """Memory (B, C, h, w) whose padding repeats the last valid row and column, as at the end of an unpadded map.

    mask: the padding (B, H, W) of a map that is ``step`` times as fine.
    """
    rows, columns = ((~mask).any(axis).sum(1) for axis in (2, 1))  # valid cells of the fine map, (B,)
    for axis, valid in ((2, rows), (3, columns)):
        last = (-(-valid // step)).clamp(min=1)[:, None] - 1
        index = torch.minimum(torch.arange(memory.shape[axis], device=memory.device)[None], last)
        shape = [memory.shape[0], 1, 1, 1]  # len() would fix the batch of an exported model
        shape[axis] = memory.shape[axis]
        memory = memory.gather(axis, index.view(shape).expand(memory.shape))
    return memory


def _enlarged(x: Tensor, step: int) -> Tensor:
    return x if step == 1 else F.interpolate(x, scale_factor=float(step), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class EmbeddedMasks:
    """Lazy masks of N queries in L layers.

    Attributes:
        queries: (L, B, N, D), the embedding of each query's mask.
        pixels: (B, D, h, w), the embedding of each pixel.
        border: see :func:`sample_points`.
    """

    queries: Tensor
    pixels: Tensor
    border: Border = "border"

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """Both embeddings."""
        return self.queries, self.pixels

    def __getitem__(self, queries: slice) -> EmbeddedMasks:
        """The masks of a part of the queries."""
        return replace(self, queries=self.queries[:, :, queries])

    def dense(self) -> Tensor:
        """Logits (B, N, h, w) of the last layer's masks."""
        return (self.queries[-1] @ self.pixels.flatten(2)).unflatten(2, self.pixels.shape[-2:])

    def rows(self, layer: Tensor, image: Tensor, query: Tensor) -> Tensor:
        """Logits (M, h, w) of the masks that three index vectors (M,) choose; see :func:`positions_by_image`."""
        chosen, size = self.queries[layer, image, query], self.pixels.shape[-2:]
        places = positions_by_image(image) or [
            (0, torch.zeros(0, dtype=torch.long))
        ]  # none: an empty part of the graph
        parts = [chosen[position] @ self.pixels[index].flatten(1) for index, position in places]
        if len(parts) == 1:
            return parts[0].unflatten(1, size)
        order = torch.cat([position for _, position in places])
        return torch.cat(parts)[order.argsort()].unflatten(1, size)

    def of_image(self, image: int, layers: Iterable[int], points: Tensor) -> Iterator[Tensor]:
        """Logits (N, P) float32 of all masks of an image, layer by layer, at points (P, 2) in [0, 1] of the canvas."""
        (pixels,) = sample_points(self.pixels[image, None], points[None], border=self.border)
        for layer in layers:
            yield self.queries[layer, image].float() @ pixels


class MaskBranch(nn.Module):
    """Masks of decoded queries and of encoder proposals, with modules passed in.

    Args:
        pixels: embeds pixels.
        queries: embeds queries: an MLP, shared by all layers and the proposals.
        border: see :func:`sample_points`.
    """

    def __init__(self, *, pixels: PixelEmbedding, queries: MLP, border: Border = "border") -> None:
        super().__init__()
        self.pixels, self.queries, self.border = pixels, queries, border

    def forward(self, hidden: Sequence[Tensor], memory: Tokens, maps: Sequence[FeatureMap]) -> list[EmbeddedMasks]:
        """States (L, B, N, C) of sets of queries, the memory, maps of the backbone, the first at 1/4 -> masks."""
        pixels = self.pixels(maps[0], memory.maps()[0])
        return [EmbeddedMasks(self.queries(states), pixels, self.border) for states in hidden]
