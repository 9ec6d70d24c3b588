"""Forms of low-rank factors, fitted to a full position relation on many boxes: what can rank r hold beyond those boxes?

python benchmarks/relation_forms.py --out docs/results/relation_forms.jsonl

The factors of ``LowRankRelation`` are linear in sines of the single coordinates of a box, while the full relation
depends on |Δx| / w, a product of position and size. Every form here maps a box to r numbers per head; bias = u·v / √r.
Errors are relative, without the means of rows, which softmax does not see. All forms are fitted to the same pairs.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from dape_ablation import Results
from relation_rank import centred, layer_boxes, truncated
from torch import Tensor, nn

from detrkit.nn.position import sine_embedding
from detrkit.nn.relation import LowRankRelation, PositionRelation

HEADS, TILE = 8, 512  # boxes of a step: as many as a detector has queries
RANKS = (16, 64, 128)
TODAY = LowRankRelation(num_heads=1, rank=1)


def sines(boxes: Tensor) -> Tensor:
    """The embedding of ``LowRankRelation``: sines of cx, cy, log w, log h of boxes (N, 4), (N, 128)."""
    return TODAY.embed(boxes[None])[0]


def gates(boxes: Tensor, number: int = 6) -> Tensor:
    """Smooth functions of log w and log h that sum to one, (N, 2, number)."""
    places = torch.linspace(math.log(0.02), math.log(0.5), number)
    distance = (boxes[:, 2:].clamp(min=1e-3).log()[..., None] - places) / (places[1] - places[0])
    return torch.softmax(-0.5 * distance.square(), dim=-1)


def gated(boxes: Tensor, features: int = 32) -> Tensor:
    """The sines of today, and those of cx times gates of log w, of cy times gates of log h."""
    places = sine_embedding(boxes[:, :2] * (2 * math.pi), features)  # (N, 2, features)
    products = places[..., None] * gates(boxes)[:, :, None]
    return torch.cat((sines(boxes), products.flatten(1)), dim=1)


def fourier(boxes: Tensor, number: int = 512) -> Tensor:
    """Random Fourier features of (cx, cy, log w, log h), (N, number): sines of random combinations of the four."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(4, number // 2, generator=draw) * torch.tensor([8.0, 8.0, 1.5, 1.5])[:, None]
    angles = torch.cat((boxes[:, :2], boxes[:, 2:].clamp(min=1e-3).log()), dim=1) @ directions
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class Factors(nn.Module):
    """Both factors of a bias of rank r: an embedding of boxes, then one linear map or an MLP per side."""

    def __init__(self, embed: Callable[[Tensor], Tensor], rank: int, hidden: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.embed, self.rank = embed, rank
        width = embed(torch.full((1, 4), 0.5)).shape[1]
        self.source, self.target = (self._map(width, hidden) for _ in range(2))

    def _map(self, width: int, hidden: tuple[int, ...]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for inner in hidden:
            layers += [nn.Linear(width, inner), nn.GELU()]
            width = inner
        return nn.Sequential(*layers, nn.Linear(width, HEADS * self.rank))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Boxes (N, 4) and (M, 4) -> bias (heads, N, M)."""
        u, v = (
            mapping(embedded).unflatten(-1, (HEADS, self.rank)).transpose(0, 1)
            for mapping, embedded in ((self.source, source), (self.target, target))
        )
        return u @ v.mT / math.sqrt(self.rank)


FORMS: dict[str, Callable[[int], Factors]] = {
    "sines": lambda rank: Factors(sines, rank),
    "gated": lambda rank: Factors(gated, rank),
    "mlp": lambda rank: Factors(sines, rank, (256,)),
    "mlp_fourier": lambda rank: Factors(fourier, rank, (256,)),
}


def error(found: Tensor, wanted: Tensor) -> Tensor:
    """Relative error of a bias, without the means of rows."""
    return centred(found - wanted).square().sum() / centred(wanted).square().sum()


@torch.no_grad()
def tiles(full: PositionRelation, boxes: int, seed: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Boxes of sources and targets in parts of :data:`TILE`, and the bias of each pair of parts, in half precision."""
    source, target = layer_boxes(boxes, seed)
    sources, targets = source.split(TILE, dim=1), target.split(TILE, dim=1)
    bias = [full(one, other)[0].half() for one in sources for other in targets]
    return [part[0] for part in sources], [part[0] for part in targets], bias


def fit(args: argparse.Namespace) -> None:
    """Fit every form at every rank, and record its errors on the boxes fitted and on others."""
    results = Results(args.out)
    for seed in args.seeds:
        torch.manual_seed(seed)
        full = PositionRelation(num_heads=HEADS)
        pairs, others = None, None
        for name in args.forms:
            for rank in args.ranks:
                what = {
                    "kind": "forms",
                    "form": name,
                    "rank": rank,
                    "seed": seed,
                    "boxes": args.boxes,
                    "steps": args.steps,
                }
                if results.has(what):
                    continue
                pairs = pairs or tiles(full, args.boxes, 2 * seed)
                others = others or tiles(full, 2 * TILE, 2 * seed + 1)
                results.add(what, **fitted(FORMS[name](rank), pairs, others, args.steps))


def fitted(
    factors: Factors, pairs: tuple[list[Tensor], ...], others: tuple[list[Tensor], ...], steps: int
) -> dict[str, float]:
    """Fit factors to the pairs; errors on them, on other boxes, and the least error that the rank allows there."""
    sources, targets, bias = pairs
    optimizer = torch.optim.Adam(factors.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    with torch.no_grad():
        embedded = [[factors.embed(part) for part in side] for side in (sources, targets)]
    begun, order = time.monotonic(), []
    for _ in range(steps):
        order = order or torch.randperm(len(bias)).tolist()
        index = order.pop()
        row, column = divmod(index, len(targets))
        loss = error(factors(embedded[0][row], embedded[1][column]), bias[index].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = time.monotonic() - begun

    @torch.no_grad()
    def mean(parts: tuple[list[Tensor], ...], every: int) -> float:
        found = [
            error(factors(factors.embed(parts[0][row]), factors.embed(parts[1][column])), wanted.float())
            for (row, column), wanted in indexed(parts, every)
        ]
        return float(torch.stack(found).mean().sqrt())

    least = [
        error(truncated(centred(wanted.float()), factors.rank), wanted.float()) for _, wanted in indexed(others, 1)
    ]
    return {
        "error": mean(pairs, 7),
        "error_unseen": mean(others, 1),
        "least_error": float(torch.stack(least).mean().sqrt()),
        "parameters": sum(parameter.numel() for parameter in factors.parameters()),
        "seconds": round(seconds, 1),
    }


def indexed(parts: tuple[list[Tensor], ...], every: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Row, column and bias of each ``every``-th pair of parts."""
    for index in range(0, len(parts[2]), every):
        yield divmod(index, len(parts[1])), parts[2][index]


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--ranks", nargs="+", type=int, default=list(RANKS))
    parser.add_argument("--boxes", type=int, default=20 * TILE)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/relation_forms.jsonl"))
    fit(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
