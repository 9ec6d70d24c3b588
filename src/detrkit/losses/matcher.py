"""Bipartite matching of queries and objects (DETR, section 3.1), for all layers and images at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from detrkit.losses.problem import Candidates, Matches, Problem
from detrkit.losses.terms import Term
from detrkit.side_by_side import in_threads
from detrkit.structures import Target

__all__ = ["HungarianMatcher"]

# Cost of a query for copies when it is already matched to an original (two-stage matching).
TAKEN = 1e6
# Replaces NaN and infinity, so that one bad prediction cannot stop a run.
NOT_FINITE = 1e8
# Maximum number of query-object pairs per cost computation; more are computed in several groups of layers.
MAX_PAIRS = 8_000_000
# From so many pairs on, assignments run in threads: fewer are solved before threads have started.
MANY_PAIRS = 200_000


def _assign(cost: np.ndarray, copies: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Matched query and target indices for a cost matrix (n, Q), in the order of the queries. With ``copies`` (n,)
    bool, originals go first.

    With more originals and copies than queries, some queries are matched to an original and a copy, as published.
    """
    if copies is None or not copies.any():
        return _pairs(cost)
    (originals,), (repeated,) = np.nonzero(~copies), np.nonzero(copies)
    query, target = _pairs(cost[originals])
    rest = cost[repeated]
    rest[:, query] = TAKEN
    query2, target2 = _pairs(rest)
    return np.concatenate((query, query2)), np.concatenate((originals[target], repeated[target2]))


def _pairs(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest assignment of a cost matrix (n, Q): query and target indices.

    Objects are the rows, as they lie in memory: with queries as rows SciPy finds the same assignment in three times the
    time, since it solves the transposed problem of more rows than columns.
    """
    from scipy.optimize import linear_sum_assignment  # a third of a second, which predictions need not wait for

    target, query = linear_sum_assignment(cost)
    order = query.argsort()
    return query[order], target[order]


def _to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU, by way of page-locked memory, which PyTorch keeps for the next step: several times as fast."""
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor)


class HungarianMatcher:
    """One-to-one matching by the weighted sum of the costs of terms.

    Args:
        terms: only terms with a ``cost_weight`` are used (published: class 1, L1 5, GIoU 2; with focal loss 2, 5, 2).
        two_stage: match originals before their copies.

    Raises:
        ValueError: no term has a cost.
    """

    def __init__(self, *, terms: Sequence[Term], two_stage: bool = False) -> None:
        self.terms = [term for term in terms if term.cost_weight != 0]
        if not self.terms:
            raise ValueError("nothing to match by: set the cost_weight of at least one term")
        self.two_stage = two_stage
        self._warned = False

    def cost(self, problem: Problem) -> Tensor:
        """Cost of every object of the batch with every query of its image: (L, G, Q)."""
        pairs = problem.group.logits.shape[2] * len(problem.labels)
        step = max(1, MAX_PAIRS // max(1, pairs))
        parts = [slice(start, start + step) for start in range(0, problem.layers, step)]
        return torch.cat([self._cost(Candidates(problem, layers)) for layers in parts])

    def _cost(self, candidates: Candidates) -> Tensor:
        terms = [term for term in self.terms if term.reads(candidates.problem.group)]
        return reduce(torch.add, (term.cost_weight * term.cost(candidates) for term in terms))

    def __call__(self, problem: Problem) -> Matches:
        """Match every layer separately; at most min(Q, objects) pairs per image."""
        return self.match([problem])[0]

    @torch.no_grad()
    def match(self, problems: Sequence[Problem]) -> list[Matches]:
        """Match several problems, with one device-to-host copy of all costs."""
        costs = [self.cost(problem) if len(problem.labels) else None for problem in problems]
        flat = [cost.flatten() for cost in costs if cost is not None]
        host = self._finite(_to_host(torch.cat(flat)).numpy()) if flat else np.zeros(0)
        result, start = [], 0
        for problem, cost in zip(problems, costs, strict=True):
            device = problem.group.logits.device
            if cost is None:
                empty = torch.zeros(0, dtype=torch.long, device=device)
                result.append(Matches(empty, empty, empty, empty))
                continue
            part = host[start : start + cost.numel()].reshape(cost.shape)
            start += cost.numel()
            result.append(Matches(*torch.from_numpy(self._solve(part, problem.targets)).to(device)))
        return result

    def _finite(self, cost: np.ndarray) -> np.ndarray:
        finite = np.isfinite(cost)
        if finite.all():
            return cost
        if not self._warned:
            self._warned = True
            warnings.warn("predictions are not finite: the matcher treats them as the worst match", stacklevel=2)
        return np.where(finite, cost, NOT_FINITE)

    def _solve(self, cost: np.ndarray, targets: list[Target]) -> np.ndarray:
        """Rows layer, image, query, target (4, L·M) from costs (L, G, Q)."""
        copies = [self._copies(target) for target in targets]
        counts = [len(target) for target in targets]
        starts = [0, *accumulate(counts)]
        places = [(layer, image) for layer in range(len(cost)) for image, count in enumerate(counts) if count]

        def solve(place: tuple[int, int]) -> np.ndarray:
            layer, image = place
            start = starts[image]
            query, target = _assign(cost[layer, start : start + counts[image]], copies[image])
            return np.stack((np.full_like(query, layer), np.full_like(query, image), query, target + start))

        run = map if cost.size < MANY_PAIRS else in_threads
        return np.concatenate(list(run(solve, places)), axis=1)

    def _copies(self, target: Target) -> np.ndarray | None:
        return target.is_copy.cpu().numpy() if self.two_stage and target.is_copy is not None else None
