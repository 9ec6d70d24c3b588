"""The learning curve: AP of every run, the curves that they allow, and what twice the images would bring."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from detrkit.report.charts.canvas import chart
from detrkit.report.growth import CONFIDENCE, Growth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_growth"]

_BLUE, _RED = "#0a7cff", "#e6194b"
_PLACES = 24  # along the curve


def draw_growth(growth: Growth, *, title: str = "") -> Figure:
    """Draw AP against the number of training images, from the smallest part to twice the largest."""
    return chart([partial(_panel, growth=growth)], columns=1, size=(6.4, 4.2), title=title)


def _panel(axes: Axes, *, growth: Growth) -> None:
    largest = growth.sizes[-1]
    places = np.geomspace(growth.sizes[0], 2 * largest, _PLACES)
    band = [growth.curve.forecast(float(place), confidence=CONFIDENCE) for place in places]
    axes.plot(places, [one.score for one in band], color=_BLUE, label="saturating power law")
    label = f"{100 * CONFIDENCE:.0f} % interval of one more measurement"
    axes.fill_between(
        places, [one.low for one in band], [one.high for one in band], color=_BLUE, alpha=0.15, linewidth=0, label=label
    )
    axes.plot([run.images for run in growth.runs], [run.ap for run in growth.runs], "o", color="#222222", label="runs")
    doubled, test = growth.doubled, growth.back_test
    axes.errorbar(
        [doubled.images],
        [doubled.score],
        yerr=[[doubled.score - doubled.low], [doubled.high - doubled.score]],
        fmt="D",
        color=_BLUE,
        capsize=4,
        label="twice the labels",
    )
    if test is not None:
        told = test.forecast
        axes.errorbar(
            [told.images * 0.96],  # beside the runs
            [told.score],
            yerr=[[told.score - told.low], [told.high - told.score]],
            fmt="s",
            color=_RED,
            capsize=4,
            label=f"back-test, from at most {test.fitted_on[-1]:,} images",
        )
    ticks = [*growth.sizes, 2 * largest]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="training images", ylabel="AP", ylim=(0, None))
    axes.legend(loc="lower right")
