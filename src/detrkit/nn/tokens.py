"""The cells of feature maps as one sequence of tokens: what encoders mix and decoders read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from detrkit.nn.backbone import FeatureMap

__all__ = ["Tokens", "flatten_levels", "gather_rows", "joined", "on_levels", "to_tokens"]


@dataclass(frozen=True)
class Tokens:
    """The cells of L levels, one level after the other: S tokens.

    Attributes:
        content: (B, S, C).
        position: (B, S, C), position encoding and, of several levels, the level's embedding.
        padding_mask: (B, S) bool, True = padding.
        shapes: height and width of every level; plain numbers, so that no device has to be asked for them.
        valid_cells: (B, L, 2) float, columns and rows that hold image.
        level_embed: (S, C), what position tells of each token's level; None where there is one level.
        projected: (B, S, C), of a memory: the content before the encoder, where a mask head may read it; else None.
    """

    content: Tensor
    position: Tensor
    padding_mask: Tensor
    shapes: tuple[tuple[int, int], ...]
    valid_cells: Tensor
    level_embed: Tensor | None = None
    projected: Tensor | None = None

    @property
    def sizes(self) -> list[int]:
        """Tokens of every level."""
        return [height * width for height, width in self.shapes]

    @cached_property
    def extents(self) -> Tensor:
        """(L, 2) float, columns and rows of every level."""
        numbers = [side for height, width in self.shapes for side in (width, height)]
        like = self.valid_cells
        # not torch.tensor(numbers), which torch.export would take for constants
        return torch.stack([torch.full((), side, dtype=like.dtype, device=like.device) for side in numbers]).view(-1, 2)

    @property
    def valid_ratios(self) -> Tensor:
        """(B, L, 2), the share of each level's width and height that holds image."""
        return self.valid_cells / self.extents

    def levels(self) -> Tensor:
        """(S,) int64, the level of every token, on the CPU."""
        return torch.cat([torch.full((size,), level) for level, size in enumerate(self.sizes)])

    def centres(self) -> Tensor:
        """(B, S, 2), x and y of every token's centre, in units of the valid area."""
        centres = []
        for level, (height, width) in enumerate(self.shapes):
            rows = torch.arange(height, device=self.content.device) + 0.5
            columns = torch.arange(width, device=self.content.device) + 0.5
            grid = torch.stack((columns.expand(height, -1), rows[:, None].expand(-1, width)), dim=-1)
            centres.append(grid.flatten(0, 1) / self.valid_cells[:, None, level])
        return torch.cat(centres, dim=1)

    def maps(self) -> list[Tensor]:
        """The content as maps (B, C, h, w), one per level."""
        return self._maps(self.content)

    def projected_maps(self) -> list[Tensor]:
        """The content before the encoder as maps (B, C, h, w), one per level."""
        if self.projected is None:
            raise ValueError("these tokens do not have their content from before the encoder")
        return self._maps(self.projected)

    def _maps(self, content: Tensor) -> list[Tensor]:
        parts = content.split(self.sizes, dim=1)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def padding_maps(self) -> list[Tensor]:
        """The padding mask as maps (B, h, w), one per level."""
        parts = self.padding_mask.split(self.sizes, dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts (B, N_i, …) side by side, (B, N, …)."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)


def to_tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h·w, C)."""
    return maps.flatten(2).transpose(1, 2)


def flatten_levels(
    levels: Sequence[FeatureMap], position: Callable[[Tensor], Tensor], level_embed: Tensor | None = None
) -> Tokens:
    """The cells of levels as tokens.

    position: encodes the places of a padding mask (B, h, w) as (B, h, w, C) · level_embed: (L, C), added to the
    positions of each level's tokens.
    """
    valid = [~level.padding_mask for level in levels]
    cells = [torch.stack((mask[:, 0].sum(1), mask[:, :, 0].sum(1)), dim=-1) for mask in valid]
    shapes = tuple((level.tensor.shape[-2], level.tensor.shape[-1]) for level in levels)
    places = joined([position(level.padding_mask).flatten(1, 2) for level in levels])
    embed = None
    if level_embed is not None:
        sizes = [height * width for height, width in shapes]
        embed = torch.cat([row.expand(size, -1) for row, size in zip(level_embed, sizes, strict=True)])
        places = places + embed
    return Tokens(
        content=joined([to_tokens(level.tensor) for level in levels]),
        position=places,
        padding_mask=joined([level.padding_mask.flatten(1) for level in levels]),
        shapes=shapes,
        valid_cells=torch.stack(cells, dim=1).float(),
        level_embed=embed,
    )


def on_levels(reference: Tensor, tokens: Tokens) -> Tensor:
    """Points or boxes (B, Q, 2 or 4) of the valid area -> on the padded map of every level (B, Q, L, 2 or 4)."""
    ratios = tokens.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)
    return reference[:, :, None] * ratios[:, None]


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows (B, K) of values (B, S, D) -> (B, K, D)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
