"""How a score grows with the number of training images: a saturating power law, and what it says about more of them.

``score(n) = a - b n**-c`` says that every doubling of the images brings ``r = 2**-c`` times what the one before it
brought. Written from the largest number of images N that was tried, with x doublings from there,

    score(x) = u + d (1 - r**x) / (1 - r),    a = u + d / (1 - r),

``d`` is what the next doubling brings, the number that is asked for. With three or four points the best curve alone is
worth little, so all curves are kept that the points allow, cells of (u, d, r), each weighed by how well it fits. Before
the points are seen, any ``d`` >= 0, any ``r`` from 0.2 to 1 and any ``a`` <= 1 count the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detrkit.errors import DataError

__all__ = ["Forecast", "Saturation", "fit_saturation", "run_variance"]

FloatArray = NDArray[np.float64]

_RATIOS = (0.2, 0.99)
_CELLS = 31  # of u, d and r each
_REACH = 5.0  # standard deviations of u and d on both sides
_ZOOMS = 3  # the cells of r are laid again over what has weight
_WEIGHTLESS = 1e-6  # of the best cell
_DRAWS = 20_000
_LEAST_ERROR = 1e-4  # of a score

# Runs that differ in their seed alone: deviation of AP that is expected before any is seen, and the number of
# deviations that this counts for. Blood cells, 200 to 500 steps of the laptop models, have 0.01 to 0.02.
_EXPECTED_DEVIATION, _ITS_WEIGHT = 0.02, 4.0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The score for a number of images, and the interval that holds it with a probability of ``confidence``."""

    images: float
    score: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """The curves that the points allow, with their probabilities.

    Attributes:
        sizes: (S,) numbers of images, ascending.
        scores: (S,) what was measured.
        covariance: (S, S) of their errors, widened where the points fit no such curve.
        misfit: how many times wider; 1: the points lie on such a curve within their errors.
        curves: (C, 3) u, d and r of each curve.
        weights: (C,) their probabilities.
    """

    sizes: FloatArray
    scores: FloatArray
    covariance: FloatArray
    misfit: float
    curves: FloatArray
    weights: FloatArray

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """a, b and c of the curve that is nearest to the points."""
        errors = self.scores - _values(self.curves, self._doublings(self.sizes))
        distances = np.einsum("ci,ij,cj->c", errors, np.linalg.inv(self.covariance), errors)
        u, d, r = self.curves[distances.argmin()]
        exponent = -np.log2(r)
        return float(u + d / (1 - r)), float(d / (1 - r) * self.sizes[-1] ** exponent), float(exponent)

    def forecast(self, images: float, *, confidence: float = 0.9, seed: int = 0) -> Forecast:
        """The score that one more measurement, on the same validation images, would find with so many images.

        Its error is related to those of the points as the error of the largest one is: the validation images are the
        same, so luck with them is shared.
        """
        drawn = self._drawn(images, seed)
        low, score, high = np.quantile(drawn, [(1 - confidence) / 2, 0.5, (1 + confidence) / 2])
        return Forecast(
            images=images,
            score=float(np.clip(score, 0, 1)),
            low=float(np.clip(low, 0, 1)),
            high=float(np.clip(high, 0, 1)),
            confidence=confidence,
        )

    def gain(self, images: float, *, confidence: float = 0.9, seed: int = 0) -> Forecast:
        """The same less what was measured with the most images: what the further ones would bring."""
        drawn = self._drawn(images, seed) - self.scores[-1]
        low, score, high = np.quantile(drawn, [(1 - confidence) / 2, 0.5, (1 + confidence) / 2])
        return Forecast(images=images, score=float(score), low=float(low), high=float(high), confidence=confidence)

    def _drawn(self, images: float, seed: int) -> FloatArray:
        """(N,) measurements with so many images: a curve by its probability, then the error."""
        random = np.random.default_rng(seed)
        curves = self.curves[random.choice(len(self.curves), size=_DRAWS, p=self.weights)]
        shared = self._shared
        pull = np.linalg.solve(self.covariance, shared)
        errors = self.scores - _values(curves, self._doublings(self.sizes))
        variance = self.covariance[-1, -1] - shared @ pull
        own = random.normal(0.0, np.sqrt(max(0.0, float(variance))), size=_DRAWS)
        return _values(curves, self._doublings(np.array([images], dtype=np.float64)))[:, 0] + errors @ pull + own

    @property
    def _shared(self) -> FloatArray:
        """(S,) covariance of a new measurement's error with those of the points."""
        shared = self.covariance[-1].copy()
        if len(shared) > 1:  # its own run is another one: with the largest point it shares what that shares with others
            shared[-1] = min(shared[-1], shared[:-1].max())
        return shared

    def _doublings(self, sizes: FloatArray) -> FloatArray:
        return np.log2(sizes / self.sizes[-1])


def fit_saturation(sizes: Sequence[float], scores: Sequence[float], covariance: FloatArray) -> Saturation:
    """All saturating power laws that the points allow.

    Args:
        sizes: S different numbers of images, ascending, at least two.
        scores: what was measured with each, in [0, 1].
        covariance: (S, S) of the errors of the scores.

    Raises:
        DataError: fewer than two numbers of images, or not ascending.
    """
    images, values = np.asarray(sizes, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if len(images) < 2 or (np.diff(images) <= 0).any() or images[0] <= 0:
        raise DataError(f"a curve needs at least two different numbers of images, ascending, got {list(sizes)}")
    doublings = np.log2(images / images[-1])
    covariance = covariance + _LEAST_ERROR**2 * np.eye(len(images))
    # Birge: where even the best curve is further from the points than their errors say, these are too small
    precision = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    _, least = _ratios(doublings, values, precision)
    misfit = max(1.0, least / max(1, len(images) - 2))
    covariance = covariance * misfit
    curves, weights = _curves(doublings, values, covariance)
    return Saturation(sizes=images, scores=values, covariance=covariance, misfit=misfit, curves=curves, weights=weights)


def run_variance(scores: Sequence[Sequence[float]]) -> float:
    """Variance of a score between runs that differ in their seed, from the scores of each size.

    What is expected (0.02) counts as four deviations, so that one or two seeds do not decide it.
    """
    squares = sum(float(np.square(np.asarray(group) - np.mean(group)).sum()) for group in scores)
    freedom = sum(len(group) - 1 for group in scores)
    return (_ITS_WEIGHT * _EXPECTED_DEVIATION**2 + squares) / (_ITS_WEIGHT + freedom)


def _values(curves: FloatArray, doublings: FloatArray) -> FloatArray:
    """(C, S) scores of curves after so many doublings."""
    u, d, r = (column[:, None] for column in curves.T)
    result: FloatArray = u + d * (1 - r**doublings) / (1 - r)
    return result


def _design(doublings: FloatArray, r: float) -> FloatArray:
    """(S, 2) what u and d are multiplied by at each point."""
    return np.stack([np.ones_like(doublings), (1 - r**doublings) / (1 - r)], axis=1)


def _least_squares(doublings: FloatArray, scores: FloatArray, precision: FloatArray, r: float) -> float:
    """Squared distance of the best curve of this r that is allowed: d >= 0 and a <= 1."""
    design = _design(doublings, r)
    free = np.linalg.solve(design.T @ precision @ design, design.T @ precision @ scores)
    candidates = [free]
    if free[1] < 0 or free[0] + free[1] / (1 - r) > 1:  # then the best is on an edge: d = 0, or a = 1
        flat, below = design[:, 0], design[:, 1] - 1 / (1 - r)
        level = float(flat @ precision @ scores) / float(flat @ precision @ flat)
        rise = float(below @ precision @ (scores - 1)) / float(below @ precision @ below)
        candidates = [np.array([min(level, 1.0), 0.0]), np.array([1 - max(rise, 0.0) / (1 - r), max(rise, 0.0)])]
    errors = [scores - design @ one for one in candidates]
    return float(min(error @ precision @ error for error in errors))


def _ratios(doublings: FloatArray, scores: FloatArray, precision: FloatArray) -> tuple[FloatArray, float]:
    """Values of r that cover what has weight, and the least squared distance of any curve."""
    start, stop = _RATIOS
    for _ in range(_ZOOMS):
        ratios = np.linspace(start, stop, _CELLS)
        squares = np.array([_least_squares(doublings, scores, precision, float(r)) for r in ratios])
        near = ratios[squares <= squares.min() - 2 * np.log(_WEIGHTLESS)]
        step = float(ratios[1] - ratios[0])
        start, stop = max(start, float(near[0]) - step), min(stop, float(near[-1]) + step)
    return np.linspace(start, stop, _CELLS), float(squares.min())


def _curves(doublings: FloatArray, scores: FloatArray, covariance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Allowed curves (C, 3) and their probabilities (C,).

    For a given r the scores are linear in u and d, so that the cells lie along the axes of their joint distribution.
    """
    precision = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    ratios, _ = _ratios(doublings, scores, precision)
    axis = np.linspace(-_REACH, _REACH, _CELLS)
    places = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    curves, logarithms = [], []
    for r in ratios:
        design = _design(doublings, float(r))
        spread = np.linalg.inv(design.T @ precision @ design)
        middle = spread @ design.T @ precision @ scores
        root = np.linalg.cholesky(spread)
        error = scores - design @ middle
        u, d = (middle + places @ root.T).T
        curves.append(np.stack([u, d, np.full_like(u, r)], axis=1))
        logarithm = np.log(np.diag(root)).sum() - 0.5 * (error @ precision @ error + np.square(places).sum(axis=1))
        logarithms.append(np.where((d >= 0) & (u + d / (1 - r) <= 1), logarithm, -np.inf))
    weights = np.concatenate(logarithms)
    weights = np.exp(weights - weights.max())
    kept = weights > 0
    return np.concatenate(curves)[kept], weights[kept] / weights[kept].sum()
