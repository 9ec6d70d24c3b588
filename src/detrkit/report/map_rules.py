"""Rules about maps: classes whose pixels are taken for others."""

from __future__ import annotations

import numpy as np

from detrkit.report.advice import Advice, Evidence

__all__ = ["MAP_RULES"]

_TAKEN = 0.4  # share of the pixels of a class that are found as one other
_POOR = 0.4  # the score of the class
_TOO_FEW = 1_000  # pixels


def taken_for_another(evidence: Evidence) -> Advice | None:
    """Most pixels of a class are found as one other class."""
    if evidence.maps is None or evidence.maps.score.pixels is None:
        return None
    confusion, column = evidence.maps.confusion, evidence.maps.columns[0]
    shares, counts = confusion.shares[:-1, :-1].copy(), confusion.counts[:-1].sum(axis=1)
    values = [numbers.get(column) for numbers in evidence.maps.score.per_class.values()]
    poor = np.array([value is not None and value < _POOR for value in values], dtype=bool)
    np.fill_diagonal(shares, 0.0)
    shares[~poor | (counts < _TOO_FEW)] = 0.0
    if not shares.size or shares.max() < _TAKEN:
        return None
    label, other = np.unravel_index(int(shares.argmax()), shares.shape)
    first, second = confusion.names[label], confusion.names[other]
    return Advice(
        kind="taken for another",
        urgency=40 + 40 * float(shares[label, other]),
        title=f"Look how {first} and {second} are labelled",
        reason=f"{shares[label, other]:.0%} of the pixels labelled {first} are found as {second}, and its {column} is "
        f"{values[label]:.3f}: either there are few examples of it, or the two are labelled alike",
        command=f"detrkit data view {evidence.data} --out LOOK",
    )


MAP_RULES = (taken_for_another,)
