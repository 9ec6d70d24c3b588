"""The cells of feature maps as one sequence of tokens, the input of encoders and decoders."""

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
        position: (B, S, C), position encoding, plus a level embedding if there are several levels.
        padding_mask: (B, S) bool, True = padding.
        shapes: (height, width) per level; plain numbers, so that reading them needs no device synchronisation.
        valid_cells: (B, L, 2) float, number of columns and rows of the valid area.
        level_embed: (S, C), the level embedding of every token, part of ``position``; None without one.
        projected: (B, S, C), the content before the encoder, kept for mask heads that read it; else None.
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
        """Number of tokens per level."""
        return [height * width for height, width in self.shapes]

    @property
    def extents(self) -> Tensor:
        """Number of columns and rows per level, (L, 2) float."""
        # Python 3.11 locks what it keeps, which cannot be compiled
        return self._extents() if torch.compiler.is_dynamo_compiling() else self._kept_extents

    @cached_property
    def _kept_extents(self) -> Tensor:
        return self._extents()

    def _extents(self) -> Tensor:
        numbers = [side for height, width in self.shapes for side in (width, height)]
        like = self.valid_cells
        # not torch.tensor(numbers), which torch.export would treat as constants; not scalars, which OpenVINO rejects
        return torch.cat([torch.full((1,), side, dtype=like.dtype, device=like.device) for side in numbers]).view(-1, 2)

    @property
    def valid_ratios(self) -> Tensor:
        """Share of width and height per level that is valid, (B, L, 2)."""
        return self.valid_cells / self.extents

    def sides(self) -> Tensor:
        """Return the side of the proposal of every token, 0.05 · 2^level, (S,) float in shares of the image."""
        like = self.valid_cells
        return torch.cat([like.new_full((size,), 0.05 * 2.0**level) for level, size in enumerate(self.sizes)])

    def levels(self) -> Tensor:
        """Return the level of every token, (S,) int64 on the CPU."""
        return torch.cat([torch.full((size,), level) for level, size in enumerate(self.sizes)])

    def centres(self) -> Tensor:
        """Return x and y of the centre of every token, (B, S, 2) in units of the valid area."""
        centres = []
        for level, (height, width) in enumerate(self.shapes):
            rows = torch.arange(height, device=self.content.device) + 0.5
            columns = torch.arange(width, device=self.content.device) + 0.5
            grid = torch.stack((columns.expand(height, -1), rows[:, None].expand(-1, width)), dim=-1)
            centres.append(grid.flatten(0, 1) / self.valid_cells[:, None, level])
        return torch.cat(centres, dim=1)

    def maps(self) -> list[Tensor]:
        """Return the content as maps (B, C, h, w), one per level."""
        return self._maps(self.content)

    def projected_maps(self) -> list[Tensor]:
        """Return the content before the encoder as maps (B, C, h, w), one per level.

        Raises:
            ValueError: it was not kept.
        """
        if self.projected is None:
            raise ValueError("these tokens do not keep their content from before the encoder (Tokens.projected)")
        return self._maps(self.projected)

    def _maps(self, content: Tensor) -> list[Tensor]:
        parts = content.split(self.sizes, dim=1)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def padding_maps(self) -> list[Tensor]:
        """Return the padding mask as maps (B, h, w), one per level."""
        parts = self.padding_mask.split(self.sizes, dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate parts (B, N_i, …) to (B, N, …)."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)


def to_tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h·w, C)."""
    return maps.flatten(2).transpose(1, 2)


def flatten_levels(
    levels: Sequence[FeatureMap], position: Callable[[Tensor], Tensor], level_embed: Tensor | None = None
) -> Tokens:
    """Flatten levels to tokens.

    position: maps a padding mask (B, h, w) to position encodings (B, h, w, C) · level_embed: (L, C), added to the
    position encodings, one row per level.
    """
    valid = [~level.padding_mask for level in levels]
    cells = [torch.stack((mask[:, 0].sum(1), mask[:, :, 0].sum(1)), dim=-1) for mask in valid]
    shapes = tuple((level.tensor.shape[-2], level.tensor.shape[-1]) for level in levels)
    positions = joined([position(level.padding_mask).flatten(1, 2) for level in levels])
    embed = None
    if level_embed is not None:
        sizes = [height * width for height, width in shapes]
        embed = torch.cat([row.expand(size, -1) for row, size in zip(level_embed, sizes, strict=True)])
        positions = positions + embed
    return Tokens(
        content=joined([to_tokens(level.tensor) for level in levels]),
        position=positions,
        padding_mask=joined([level.padding_mask.flatten(1) for level in levels]),
        shapes=shapes,
        valid_cells=torch.stack(cells, dim=1).float(),
        level_embed=embed,
    )


def on_levels(reference: Tensor, tokens: Tokens) -> Tensor:
    """Convert points or boxes (B, Q, 2 or 4) from the valid area to the map of every level: (B, Q, L, 2 or 4)."""
    ratios = tokens.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)
    return reference[:, :, None] * ratios[:, None]


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows (B, K) of values (B, S, D) -> (B, K, D)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
