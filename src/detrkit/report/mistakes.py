"""What is wrong with each detection and object above the threshold, in words a person can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from detrkit.report.matching import match_objects
from detrkit.report.scored_set import ScoredSet

__all__ = ["MISTAKES", "Mistake", "Mistakes", "WorstImage", "find_mistakes", "worst_images"]

Mistake = Literal["missed", "false", "wrong class", "loose box", "duplicate"]
MISTAKES: tuple[Mistake, ...] = get_args(Mistake)

_MATCH = 0.5
_NEAR = 0.1
"""Least IoU with an object of its class for a detection to be a loose box of it (as in TIDE)."""


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """Mistakes of detections (all of which count as found) and of objects.

    Attributes:
        found: (D,) the mistake of each detection; None: right, or not judged.
        object: (D,) the object that a detection is a duplicate, a loose box or a wrong class of; -1: none.
        missed: (G,) objects that nothing finds, not even with another class or a loose box.
    """

    found: Sequence[Mistake | None]
    object: NDArray[np.int64]
    missed: NDArray[np.bool_]

    def count(self, kind: Mistake) -> int:
        """How many mistakes of a kind there are."""
        return int(self.missed.sum()) if kind == "missed" else sum(one == kind for one in self.found)


def find_mistakes(data: ScoredSet) -> Mistakes:
    """The mistake of each detection, by its IoU with the objects of its image.

    At IoU 0.5 or more: of an object of its class that a better detection has, a duplicate; of another class, a wrong
    class. From 0.1 on, of its class, a loose box. Else false: nothing is labelled there.
    """
    matches = match_objects(data, ious=[_MATCH])
    truth, found = data.truth, data.found
    kinds: list[Mistake | None] = [None] * len(found)
    of_object = matches.object[0].copy()
    covered = np.zeros(len(truth), dtype=bool)
    covered[matches.object[0][matches.right[0]]] = True
    for overlap, of_found, of_truth in zip(data.overlaps, data.found_slices, data.truth_slices, strict=True):
        crowd = truth.crowd[of_truth]
        for row in np.flatnonzero(matches.wrong[0][of_found]).tolist():
            position = of_found.start + row
            same = truth.label[of_truth] == found.label[position]
            for kind, nearby in _readings(overlap[row], same, crowd):
                kinds[position] = kind
                if nearby.any():
                    column = int(np.where(nearby, overlap[row], -1.0).argmax())
                    of_object[position] = of_truth.start + column
                    covered[of_truth.start + column] = True
                    break
    return Mistakes(found=kinds, object=of_object, missed=~covered & ~truth.crowd)


def _readings(
    overlap: NDArray[np.float64], same: NDArray[np.bool_], crowd: NDArray[np.bool_]
) -> list[tuple[Mistake, NDArray[np.bool_]]]:
    """What a wrong detection may be, the likeliest first, and the objects that would make it so."""
    return [
        ("duplicate", (overlap >= _MATCH) & same & ~crowd),
        ("wrong class", (overlap >= _MATCH) & ~same & ~crowd),
        ("loose box", (overlap >= _NEAR) & same & ~crowd),
        ("false", np.zeros(len(overlap), dtype=bool)),
    ]


@dataclass(frozen=True, kw_only=True)
class WorstImage:
    """An image with its mistakes.

    Attributes:
        position: in the images of the set.
        counts: how many of each kind.
        reason: the kind that costs most.
        cost: what its mistakes cost: 1 for a missed object, the score for a wrong detection.
    """

    position: int
    counts: dict[Mistake, int]
    reason: Mistake
    cost: float


def worst_images(data: ScoredSet, mistakes: Mistakes, *, count: int = 24) -> tuple[WorstImage, ...]:
    """The images whose mistakes cost most, the worst first."""
    costs = np.zeros((len(data.images), len(MISTAKES)))
    counts = np.zeros(costs.shape, dtype=np.int64)
    missed = data.truth.image[mistakes.missed]
    counts[:, MISTAKES.index("missed")] = np.bincount(missed, minlength=len(counts))
    costs[:, MISTAKES.index("missed")] = counts[:, MISTAKES.index("missed")]
    for position, kind in enumerate(mistakes.found):
        if kind is not None:
            place = data.found.image[position], MISTAKES.index(kind)
            costs[place] += data.found.score[position]
            counts[place] += 1
    order = np.argsort(-costs.sum(axis=1), kind="stable")[:count]
    return tuple(
        WorstImage(
            position=image,
            counts={kind: number for kind, number in zip(MISTAKES, counts[image].tolist(), strict=True) if number},
            reason=MISTAKES[int(costs[image].argmax())],
            cost=float(costs[image].sum()),
        )
        for image in order.tolist()
        if costs[image].sum() > 0
    )
