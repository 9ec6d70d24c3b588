"""The best evaluation of a run."""

from __future__ import annotations

import pytest

from detrkit.metrics import Score
from detrkit.training.best import Best


def score(value: float | None) -> Score:
    return Score("panoptic", "segm", {"PQ": value, "SQ": 0.5}, {}, headline=("PQ", "SQ"))


def test_the_first_headline_metric_decides() -> None:
    best = Best(epoch=3, metrics={"PQ": 0.4, "SQ": 0.9}, headline=("PQ", "SQ"))
    assert best.value == 0.4
    assert best.beaten_by(score(0.41))
    assert not best.beaten_by(score(0.4))
    assert not best.beaten_by(score(None))


@pytest.mark.parametrize("best", [Best(), Best(epoch=1, metrics={"PQ": None}, headline=("PQ",))])
def test_while_the_metric_is_undefined_the_last_weights_are_the_best(best: Best) -> None:
    assert best.value is None
    assert best.beaten_by(score(None))
    assert best.beaten_by(score(0.0))


def test_state_round_trip() -> None:
    best = Best(epoch=3, metrics={"PQ": 0.4, "SQ": None}, headline=("PQ", "SQ"))
    for one in (best, Best()):
        assert Best.from_state(one.state()) == one
