"""The learning curve: known curves are found again, intervals hold as often as they say, sentences fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detrkit.errors import DataError
from detrkit.metrics.coco import CocoMetric
from detrkit.metrics.result_files import read_results
from detrkit.report.growth import CurvePoint, Growth, measure_growth
from detrkit.report.intervals import ap_intervals, drawn_ap
from detrkit.report.matching import COCO_IOUS, match_objects
from detrkit.report.saturation import fit_saturation, run_variance
from detrkit.report.scored_set import scored_set
from tests.report.sets import simulated

SIZES = (25, 50, 100, 200)


def law(a: float, b: float, c: float, images: float | tuple[int, ...]) -> np.ndarray:
    return a - b * np.asarray(images, dtype=np.float64) ** -c


@pytest.mark.parametrize(("a", "b", "c"), [(0.62, 1.5, 0.5), (0.5, 0.9, 0.35), (0.8, 6.0, 0.9), (0.45, 2.0, 0.7)])
def test_known_curves_are_found_again(a: float, b: float, c: float) -> None:
    sizes = (10, 20, 40, 80, 160, 320)
    found = fit_saturation(sizes, law(a, b, c, sizes).tolist(), np.zeros((6, 6)))
    assert found.coefficients == pytest.approx((a, b, c), rel=0.05)
    assert found.misfit == 1
    forecast = found.forecast(640)
    truth = float(law(a, b, c, 640))
    assert forecast.low < truth < forecast.high
    assert forecast.score == pytest.approx(truth, abs=2e-3)
    assert found.gain(640).score == pytest.approx(truth - float(law(a, b, c, 320)), abs=2e-3)


def share_inside(*, c: float, count: int, rounds: int, run: float = 0.015) -> float:
    """Of how many drawn curves the next measurement lies in the interval that the first ``count`` points give it.
    Errors of the validation images are shared by all points, those of runs are not."""
    random = np.random.default_rng(1000 * count + int(10 * c))
    sizes, shared = SIZES[:count], 0.03
    covariance = np.full((count, count), shared**2) + np.eye(count) * run**2
    truth = law(0.6, 0.35 * 25**c, c, (*sizes, 2 * sizes[-1]))
    inside = 0
    for number in range(rounds):
        seen = truth + random.normal(0, shared) + random.normal(0, run, size=count + 1)
        forecast = fit_saturation(sizes, seen[:count].tolist(), covariance).forecast(2 * sizes[-1], seed=number)
        inside += forecast.low <= seen[-1] <= forecast.high
    return inside / rounds


def test_intervals_hold_what_is_measured_next_as_often_as_they_say() -> None:
    shares = [share_inside(c=c, count=count, rounds=40) for c, count in ((0.3, 3), (0.5, 3), (0.8, 3), (0.5, 4))]
    assert 0.84 <= np.mean(shares) <= 0.97, shares


@pytest.mark.slow
@pytest.mark.parametrize("run", [0.005, 0.015, 0.03])
@pytest.mark.parametrize("c", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_intervals_hold_in_many_settings(c: float, count: int, run: float) -> None:
    assert 0.8 <= share_inside(c=c, count=count, rounds=200, run=run) <= 0.99


def test_what_cannot_grow_is_not_said_to_grow() -> None:
    flat = fit_saturation(SIZES, [0.5, 0.5, 0.5, 0.5], np.eye(4) * 0.004**2)
    assert 0 <= flat.gain(400).score < 0.004
    full = fit_saturation(SIZES, [0.97, 0.985, 0.99, 0.995], np.eye(4) * 0.004**2)
    assert full.forecast(400).high <= 1
    falling = fit_saturation(SIZES, [0.6, 0.5, 0.4, 0.3], np.eye(4) * 0.01**2)
    assert falling.misfit > 10
    assert falling.forecast(400).low < 0.25
    for bad in ((25,), (50, 25), (25, 25)):
        with pytest.raises(DataError, match="at least two different numbers of images"):
            fit_saturation(bad, [0.1] * len(bad), np.eye(len(bad)))


def test_variance_between_runs_follows_the_seeds_that_were_run() -> None:
    assert run_variance([[0.4], [0.5]]) == pytest.approx(0.02**2)
    assert run_variance([[0.40, 0.46, 0.52] * 20]) == pytest.approx(np.var([0.40, 0.46, 0.52], ddof=0), rel=0.1)
    assert run_variance([[0.40, 0.401]] * 3) < 0.02**2


def points(*, seeds: int = 1) -> list[CurvePoint]:
    """Runs whose detections get worse with fewer images: a share of them is taken out."""
    truth, rows = simulated(images=30, seed=5, quality=0.9)
    metric = CocoMetric(truth)
    whole = scored_set(metric, read_results(rows, metric.truth, iou_type="bbox"))
    found = []
    for images, share in ((25, 0.35), (51, 0.55), (102, 0.7), (205, 0.8)):
        for seed in range(seeds):
            kept = np.random.default_rng(seed).random(len(whole.found)) < share
            part = replace(
                whole.found,
                **{name: getattr(whole.found, name)[kept] for name in ("image", "label", "boxes", "score", "lenient")},
            )
            scored = replace(whole, found=part)
            found.append(CurvePoint(fraction=images / 205, images=images, seed=seed, scored=scored))
    return found


def test_scores_and_their_errors() -> None:
    one, two = measure_growth(points()), measure_growth(points(seeds=2))
    for point, run in zip(points(), one.runs, strict=True):
        overall = ap_intervals(point.scored, match_objects(point.scored, ious=COCO_IOUS)).overall
        assert overall is not None
        assert run.ap == overall.value
    assert one.scores == tuple(run.ap for run in one.runs)
    assert two.scores == pytest.approx([np.mean([run.ap for run in two.runs if run.images == n]) for n in two.sizes])
    deviations = np.sqrt(np.diag(one.covariance))
    assert deviations == pytest.approx([np.hypot(run.deviation, 0.02) for run in one.runs], rel=0.01)
    correlation = (one.covariance[0, 1]) / one.runs[0].deviation / one.runs[1].deviation
    assert 0.2 < correlation < 1  # they see the same images
    assert "one seed" in one.remarks[-1]
    assert not two.remarks
    apart = drawn_ap(points()[0].scored, match_objects(points()[0].scored, ious=COCO_IOUS), rounds=5)
    assert [part.shape[0] for part in apart] == [6, 6]


def grown(scores: tuple[float, ...], *, deviation: float = 0.01) -> Growth:
    return Growth(
        runs=(), sizes=(25, 51, 102, 205), scores=scores, covariance=np.eye(4) * deviation**2, run_deviation=deviation
    )


def test_the_sentence_and_the_back_test() -> None:
    rising = grown((0.30, 0.40, 0.47, 0.52))
    assert rising.sentence.startswith(
        "Twice the labels (410 images instead of 205) would change AP from 0.520 to about 0.5"
    )
    assert rising.sentence.endswith("more labels of this kind would help.")
    assert rising.back_test is not None
    assert rising.back_test.fitted_on == (25, 51, 102)
    assert rising.back_test.inside
    assert "measured is 0.520, inside." in rising.back_test_sentence
    surprise = grown((0.30, 0.40, 0.47, 0.30))
    assert surprise.back_test is not None
    assert not surprise.back_test.inside
    assert "outside" in surprise.back_test_sentence
    assert "do not lie on a saturating curve" in surprise.remarks[0]
    flat = grown((0.5, 0.5, 0.5, 0.5), deviation=0.003)
    assert flat.sentence.endswith("more labels of this kind would bring next to nothing.")
    assert "give them more steps" in grown((0.0, 0.001, 0.002, 0.001)).sentence
    content = rising.to_json()
    assert content["doubled"]["images"] == 410
    assert content["gain"]["low"] > 0
    assert content["back_test"]["inside"] is True
    short = replace(rising, sizes=(102, 205), scores=(0.47, 0.52), covariance=np.eye(2) * 1e-4)
    assert short.back_test is None
    assert short.to_json()["back_test"] is None
    assert "needs two parts" in short.back_test_sentence
