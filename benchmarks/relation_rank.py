"""What a position relation is like: its spectrum, what is left of it at rank r, how near low-rank factors come to it.

Attention does not see what all entries of a row of the bias have in common; :func:`centred` takes it away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from relation import boxes
from torch import Tensor, nn

from detrkit.nn.relation import FullRelation, LowRankRelation, PositionRelation

RANKS = (4, 16, 64, 128)


def centred(bias: Tensor) -> Tensor:
    """A bias (…, N, M) without what is the same for a whole row, which softmax does not see."""
    return bias - bias.mean(dim=-1, keepdim=True)


def energy(bias: Tensor, ranks: tuple[int, ...] = RANKS) -> dict[str, float]:
    """Share of the squared singular values of (…, N, M) in the largest r of them, mean over matrices."""
    values = torch.linalg.svdvals(bias.double()).square()
    whole = values.sum(-1).clamp(min=torch.finfo(torch.float64).tiny)
    return {str(rank): float((values[..., :rank].sum(-1) / whole).mean()) for rank in ranks}


def truncated(bias: Tensor, rank: int) -> Tensor:
    """The nearest bias (…, N, M) of rank r."""
    if rank == 0:
        return torch.zeros_like(bias)
    wide = bias.double()
    _, vectors = torch.linalg.eigh(wide.mT @ wide)  # ascending
    kept_directions = vectors[..., -rank:]
    return (wide @ kept_directions @ kept_directions.mT).to(bias.dtype)


class TruncatedRelation(nn.Module):
    """A position relation of which only rank r is left (None: all of it).

    look: called with every bias (B, heads, N, N) before anything is left out.
    """

    def __init__(self, relation: PositionRelation, rank: int | None, look: Callable[[Tensor], None] | None = None):
        super().__init__()
        self.relation, self.rank, self.look = relation, rank, look

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Boxes (B, N, 4) and (B, M, 4) -> bias (B, heads, N, M)."""
        bias: Tensor = self.relation(source, target)
        if self.look is not None:
            self.look(bias)
        return bias if self.rank is None else truncated(centred(bias), self.rank)

    def bias(self, source: Tensor, target: Tensor, blocked: Tensor | None) -> FullRelation:
        """What self-attention attends under; all rows at once, since rank is a matter of the whole matrix."""
        return FullRelation(self, source, target, blocked)


def layer_boxes(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random boxes (1, N, 4) and the same a layer later: moved and scaled by about a twentieth of their size."""
    source = boxes(number, "cpu", seed)
    moves = 0.05 * torch.randn(source.shape, generator=torch.Generator().manual_seed(seed + 1000))
    centre = source[..., :2] + moves[..., :2] * source[..., 2:]
    return source, torch.cat((centre, source[..., 2:] * moves[..., 2:].exp()), dim=-1)


@torch.no_grad()
def fitted(bias: Tensor, source: Tensor, target: Tensor, rank: int, tolerance: float = 1e-4) -> LowRankRelation:
    """The low-rank relation nearest to a bias (1, heads, N, M) on its boxes, by least squares.

    Both factors are linear in an embedding of a box, so the nearest product is known: the bias between the spaces that
    the two embeddings span, cut to rank r by its singular values. Directions of an embedding that are ``tolerance``
    times weaker than its strongest are left out.
    """
    heads = bias.shape[1]
    relation = LowRankRelation(num_heads=heads, rank=rank)
    spaces = []
    width = relation.source_proj.in_features
    same = nn.Linear(width, width)
    same.weight.copy_(torch.eye(width))
    same.bias.zero_()
    for found in (source, target):
        whole = LowRankRelation(num_heads=1, rank=1).factors(found, same)[0, 0].double()
        whole = torch.cat((whole, torch.ones_like(whole[:, :1])), dim=1)  # the bias of the linear layer
        u, s, vh = torch.linalg.svd(whole, full_matrices=False)
        count = int((s > tolerance * s[0]).sum())
        spaces.append((u[:, :count], vh[:count].mT / s[:count]))
    (left, to_left), (right, to_right) = spaces
    a, s, bh = torch.linalg.svd(left.mT @ bias[0].double() @ right, full_matrices=False)
    scale = (s[:, :rank] * rank**0.5).sqrt()[:, None]
    for proj, back, vectors in (
        (relation.source_proj, to_left, a[:, :, :rank]),
        (relation.target_proj, to_right, bh.mT[:, :, :rank]),
    ):
        found = back @ (vectors * scale)  # (heads, features + 1, r)
        found = nn.functional.pad(found, (0, rank - found.shape[-1])).mT.flatten(0, 1)
        proj.weight.copy_(found[:, :-1])
        proj.bias.copy_(found[:, -1])
    return relation


@torch.no_grad()
def fit_errors(
    full: PositionRelation, ranks: list[int], number: int, seed: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """For every rank: relative errors of the fit on its own boxes, on others, and the least any factors could have."""
    own, others = layer_boxes(number, 2 * seed), layer_boxes(number, 2 * seed + 1)
    wanted, unseen = full(*own), full(*others)
    content, seen = energy(wanted, tuple(ranks)), energy(centred(wanted), tuple(ranks))

    def error(found: Tensor, expected: Tensor) -> float:
        return float((centred(found - expected)).norm() / centred(expected).norm())

    for rank in ranks:
        relation = fitted(centred(wanted), *own, rank)
        yield (
            rank,
            {
                "least_error": error(truncated(centred(wanted), rank), wanted),
                "error": error(relation(*own), wanted),
                "error_unseen": error(relation(*others), unseen),
                "energy": content[str(rank)],
                "energy_centred": seen[str(rank)],
            },
        )
