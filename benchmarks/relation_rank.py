"""Analysis of a position relation: its spectrum, its truncation to rank r, and the error of low-rank factors.

Attention does not depend on the mean of a row of the bias; :func:`centred` subtracts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from relation import boxes
from torch import Tensor, nn

from detrkit.nn.relation import FullRelation, LowRankRelation, PositionRelation

RANKS = (4, 16, 64, 128)


def centred(bias: Tensor) -> Tensor:
    """Subtract the row means of a bias (…, N, M), which do not change its softmax."""
    return bias - bias.mean(dim=-1, keepdim=True)


def energy(bias: Tensor, ranks: tuple[int, ...] = RANKS) -> dict[str, float]:
    """Share of the r largest in the sum of squared singular values of (…, N, M), mean over matrices."""
    values = torch.linalg.svdvals(bias.double()).square()
    whole = values.sum(-1).clamp(min=torch.finfo(torch.float64).tiny)
    return {str(rank): float((values[..., :rank].sum(-1) / whole).mean()) for rank in ranks}


def truncated(bias: Tensor, rank: int) -> Tensor:
    """The best approximation of rank r to a bias (…, N, M)."""
    if rank == 0:
        return torch.zeros_like(bias)
    wide = bias.double()
    _, vectors = torch.linalg.eigh(wide.mT @ wide)  # ascending
    leading = vectors[..., -rank:]
    return (wide @ leading @ leading.mT).to(bias.dtype)


class TruncatedRelation(nn.Module):
    """A position relation truncated to rank r (None: not truncated).

    ``observe`` is called with every bias (B, heads, N, N) before truncation.
    """

    def __init__(self, relation: PositionRelation, rank: int | None, observe: Callable[[Tensor], None] | None = None):
        super().__init__()
        self.relation, self.rank, self.observe = relation, rank, observe

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Boxes (B, N, 4) and (B, M, 4) -> bias (B, heads, N, M)."""
        bias: Tensor = self.relation(source, target)
        if self.observe is not None:
            self.observe(bias)
        return bias if self.rank is None else truncated(centred(bias), self.rank)

    def bias(self, source: Tensor, target: Tensor, blocked: Tensor | None) -> FullRelation:
        """The bias of self-attention, with all rows at once, since truncation needs the whole matrix."""
        return FullRelation(self, source, target, blocked)


def layer_boxes(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random boxes (1, N, 4), and the same boxes one layer later: moved and scaled by about 5 % of their size."""
    source = boxes(number, "cpu", seed)
    moves = 0.05 * torch.randn(source.shape, generator=torch.Generator().manual_seed(seed + 1000))
    centre = source[..., :2] + moves[..., :2] * source[..., 2:]
    return source, torch.cat((centre, source[..., 2:] * moves[..., 2:].exp()), dim=-1)


@torch.no_grad()
def fitted(bias: Tensor, source: Tensor, target: Tensor, rank: int, tolerance: float = 1e-4) -> LowRankRelation:
    """Least-squares fit of a low-rank relation to a bias (1, heads, N, M) on its boxes.

    Both factors are linear in the embedding of a box, so the best product has a closed form: the bias projected onto
    the spans of the two embeddings and truncated to rank r by its singular values. Directions of an embedding with a
    singular value below ``tolerance`` times the largest one are left out.
    """
    heads = bias.shape[1]
    relation = LowRankRelation(num_heads=heads, rank=rank)
    spaces = []
    for side in (source, target):
        features = relation.embed(side)[0].double()
        features = torch.cat((features, torch.ones_like(features[:, :1])), dim=1)  # 1 for the bias of the linear layer
        u, s, vh = torch.linalg.svd(features, full_matrices=False)
        count = int((s > tolerance * s[0]).sum())
        spaces.append((u[:, :count], vh[:count].mT / s[:count]))
    (left, to_left), (right, to_right) = spaces
    a, s, bh = torch.linalg.svd(left.mT @ bias[0].double() @ right, full_matrices=False)
    scale = (s[:, :rank] * rank**0.5).sqrt()[:, None]
    for proj, back, vectors in (
        (relation.source_proj, to_left, a[:, :, :rank]),
        (relation.target_proj, to_right, bh.mT[:, :, :rank]),
    ):
        weight = back @ (vectors * scale)  # (heads, features + 1, r)
        weight = nn.functional.pad(weight, (0, rank - weight.shape[-1])).mT.flatten(0, 1)
        proj.weight.copy_(weight[:, :-1])
        proj.bias.copy_(weight[:, -1])
    return relation


@torch.no_grad()
def fit_errors(
    full: PositionRelation, ranks: list[int], number: int, seed: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """For every rank: relative errors of the fit on its own boxes and on other boxes, and the lowest possible error."""
    own, others = layer_boxes(number, 2 * seed), layer_boxes(number, 2 * seed + 1)
    expected, unseen = full(*own), full(*others)
    plain, without_means = energy(expected, tuple(ranks)), energy(centred(expected), tuple(ranks))

    def error(actual: Tensor, wanted: Tensor) -> float:
        return float((centred(actual - wanted)).norm() / centred(wanted).norm())

    for rank in ranks:
        relation = fitted(centred(expected), *own, rank)
        yield (
            rank,
            {
                "least_error": error(truncated(centred(expected), rank), expected),
                "error": error(relation(*own), expected),
                "error_unseen": error(relation(*others), unseen),
                "energy": plain[str(rank)],
                "energy_centred": without_means[str(rank)],
            },
        )
