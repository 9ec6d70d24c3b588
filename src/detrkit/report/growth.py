"""What a learning curve says: AP on parts of the training images, what twice the labels would bring, and whether the
same prediction from at most half of the images was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrkit.report.intervals import drawn_ap
from detrkit.report.matching import COCO_IOUS, match_objects
from detrkit.report.saturation import Forecast, Saturation, fit_saturation, run_variance
from detrkit.report.scored_set import ScoredSet

__all__ = ["BackTest", "CurvePoint", "Growth", "RunScore", "measure_growth"]

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.9
LITTLE = 0.01  # AP: less than the next run with another seed differs by
NOTHING = 0.02  # AP: of runs that have not begun to learn, whatever the number of images


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A run of the curve: part of the training images, their number, seed, and what it found in the validation
    images."""

    fraction: float
    images: int
    seed: int
    scored: ScoredSet


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """AP of a run, and the standard deviation that other validation images of the same kind would give it."""

    fraction: float
    images: int
    seed: int
    ap: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class BackTest:
    """What the runs on at most half of the images said of all of them, and what was measured there."""

    fitted_on: tuple[int, ...]
    forecast: Forecast
    ap: float

    @property
    def inside(self) -> bool:
        """Whether the measured AP lies in the interval."""
        return self.forecast.low <= self.ap <= self.forecast.high


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A learning curve.

    Attributes:
        runs: the score of every run.
        sizes: (S,) numbers of images, ascending.
        scores: (S,) AP with each, the mean over the seeds.
        covariance: (S, S) of their errors: the choice of validation images, which all sizes share, and the run.
        run_deviation: standard deviation of AP between runs that differ in their seed.
    """

    runs: tuple[RunScore, ...]
    sizes: tuple[int, ...]
    scores: tuple[float, ...]
    covariance: FloatArray
    run_deviation: float

    @cached_property
    def curve(self) -> Saturation:
        """The curves that all points allow."""
        return fit_saturation(self.sizes, self.scores, self.covariance)

    @cached_property
    def doubled(self) -> Forecast:
        """AP with twice the images of the largest part."""
        return self.curve.forecast(2 * self.sizes[-1], confidence=CONFIDENCE)

    @cached_property
    def gain(self) -> Forecast:
        """AP with twice the images less AP with the largest part."""
        return self.curve.gain(2 * self.sizes[-1], confidence=CONFIDENCE)

    @cached_property
    def back_test(self) -> BackTest | None:
        """The test on the largest part; None: fewer than two parts have at most half of its images."""
        count = sum(size <= 0.5 * self.sizes[-1] + 0.5 for size in self.sizes)  # parts are rounded down
        if count < 2:
            return None
        part = fit_saturation(self.sizes[:count], self.scores[:count], self.covariance[:count, :count])
        forecast = part.forecast(self.sizes[-1], confidence=CONFIDENCE)
        return BackTest(fitted_on=self.sizes[:count], forecast=forecast, ap=self.scores[-1])

    @property
    def sentence(self) -> str:
        """What twice the labels would bring, in one sentence."""
        now, then, gain = self.scores[-1], self.doubled, self.gain
        if max(self.scores) < NOTHING:
            return (
                f"These runs learned next to nothing (AP {now:.3f} with {self.sizes[-1]:,} images), so they say "
                "nothing about more labels: give them more steps."
            )
        what = (
            f"Twice the labels ({2 * self.sizes[-1]:,} images instead of {self.sizes[-1]:,}) would change AP from "
            f"{now:.3f} to about {then.score:.3f}: {gain.score:+.3f}, with {100 * CONFIDENCE:.0f} % probability "
            f"between {gain.low:+.3f} and {gain.high:+.3f}"
        )
        return f"{what}; {self._worth(gain)}."

    @staticmethod
    def _worth(gain: Forecast) -> str:
        if gain.high < LITTLE:
            return "more labels of this kind would bring next to nothing"
        if gain.low > 0:
            return "more labels of this kind would help"
        if gain.score < LITTLE:
            return "whether more labels of this kind would help is not to be seen, and it would not be much"
        return "more labels of this kind would probably help"

    @property
    def back_test_sentence(self) -> str:
        """Whether the same prediction from at most half of the images was right."""
        test = self.back_test
        if test is None:
            return "No back-test: it needs two parts of at most half of the images."
        ends = f"{test.forecast.low:.3f} to {test.forecast.high:.3f}"
        verdict = "inside" if test.inside else "outside: trust the sentence above as little"
        *others, last = (f"{size:,}" for size in test.fitted_on)
        return (
            f"Back-test: from {', '.join(others)} and {last} images alone it would have said "
            f"{ends} for {self.sizes[-1]:,}; measured is {test.ap:.3f}, {verdict}."
        )

    @property
    def remarks(self) -> list[str]:
        """What else has to be known to believe it."""
        found = []
        if self.curve.misfit > 1.5:
            found.append(
                "the points do not lie on a saturating curve (runs too short, parts too small, or luck), so the "
                "interval is wide: more steps or more seeds would tell more"
            )
        if len({run.seed for run in self.runs}) == 1:
            found.append(f"one seed: between runs a deviation of {self.run_deviation:.3f} AP is assumed, not measured")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        a, b, c = self.curve.coefficients
        test = self.back_test
        return {
            "metric": "AP",
            "runs": [asdict(run) for run in self.runs],
            "points": [{"images": size, "ap": ap} for size, ap in zip(self.sizes, self.scores, strict=True)],
            "run_deviation": self.run_deviation,
            "curve": {"a": a, "b": b, "c": c, "formula": "AP = a - b * images ** -c", "misfit": self.curve.misfit},
            "doubled": asdict(self.doubled),
            "gain": {"ap": self.gain.score, "low": self.gain.low, "high": self.gain.high, "confidence": CONFIDENCE},
            "back_test": None if test is None else {**asdict(test), "inside": test.inside},
            "sentence": self.sentence,
            "back_test_sentence": self.back_test_sentence,
            "remarks": self.remarks,
        }


def measure_growth(points: Sequence[CurvePoint], *, rounds: int = 300, seed: int = 0) -> Growth:
    """AP of every run and what is known about its errors: the validation images are drawn anew ``rounds`` times, the
    same for all runs; the run itself adds what runs of one size differ by."""
    drawn = [
        drawn_ap(point.scored, match_objects(point.scored, ious=COCO_IOUS), rounds=rounds, seed=seed)[0]
        for point in points
    ]
    runs = tuple(
        RunScore(
            fraction=point.fraction,
            images=point.images,
            seed=point.seed,
            ap=float(values[0]),
            deviation=float(np.nanstd(values[1:])),
        )
        for point, values in zip(points, drawn, strict=True)
    )
    sizes = sorted({point.images for point in points})
    groups = [[k for k, point in enumerate(points) if point.images == size] for size in sizes]
    means = np.stack([np.mean([drawn[k] for k in group], axis=0) for group in groups])
    variance = run_variance([[runs[k].ap for k in group] for group in groups])
    known = means[:, 1:][:, ~np.isnan(means[:, 1:]).any(axis=0)]  # a drawn set may have no object
    covariance = np.cov(known).reshape(len(sizes), len(sizes))
    covariance = covariance + np.diag([variance / len(group) for group in groups])
    return Growth(
        runs=runs,
        sizes=tuple(sizes),
        scores=tuple(float(value) for value in means[:, 0]),
        covariance=covariance,
        run_deviation=float(np.sqrt(variance)),
    )
