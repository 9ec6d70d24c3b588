"""The charts of the page: the course of the training, and curves over score thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from detrkit.report.analysis import Analysis
from detrkit.report.precision_recall import ThresholdCurve
from detrkit.report.run_log import RunLog
from detrkit.report.svg import Line, line_chart

__all__ = ["PageChart", "curve_charts", "training_charts"]

_CLASSES_DRAWN = 8
_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True, kw_only=True)
class PageChart:
    """A chart with what is written below it."""

    svg: Markup
    caption: str
    lines: Sequence[Line] = ()


def training_charts(log: RunLog) -> list[PageChart]:
    """Scores, loss and learning rate over the steps of a run, as far as its log has them."""
    found = []
    names = [name for name in ("AP", "AP50", "AP75") if log.series(name)] or ([log.metric] if log.metric else [])
    scores = [Line(name=name, points=log.series(name), color=number) for number, name in enumerate(names)]
    if any(line.points for line in scores):
        mark = None if log.best is None else (float(log.best.step), f"best: epoch {log.best.epoch}")
        top = max(value for line in scores for _, value in line.points)
        ends = (0.0, min(1.0, max(0.05, top * 1.1)))
        xs = (0.0, float(max(log.steps, 1)))
        svg = line_chart(scores, x_label="step", y_label="score", title="scores", x_range=xs, y_range=ends, mark=mark)
        found.append(PageChart(svg=svg, caption="Scores on the validation images", lines=scores))
    if log.losses:
        loss = [Line(name="loss", points=log.losses)]
        low, high = np.quantile([value for _, value in log.losses], [0.0, 0.995]).tolist()
        from_zero = (0.0, high) if low >= 0 and high > 0 else None
        svg = line_chart(loss, x_label="step", y_label="loss", title="training loss", y_range=from_zero)
        found.append(PageChart(svg=svg, caption="Total loss on the training images", lines=loss))
    if len(log.rates) > 1:
        rate = [Line(name="learning rate", points=log.rates, color=2)]
        ends = (0.0, 1.05 * max(value for _, value in log.rates))
        svg = line_chart(rate, x_label="step", y_label="learning rate", title="learning rate", y_range=ends)
        found.append(PageChart(svg=svg, caption="Learning rate", lines=rate))
    return found


def curve_charts(analysis: Analysis) -> list[PageChart]:
    """Precision over recall, and precision, recall and F1 over the score threshold."""
    shown = sorted(
        ((label, curve) for label, curve in enumerate(analysis.class_curves) if curve.objects),
        key=lambda item: -item[1].objects,
    )[:_CLASSES_DRAWN]
    several = len(shown) > 1
    lines = [
        Line(name=curve.name, color=1 + number, strong=False, points=_precision_recall(curve))
        for number, (_, curve) in enumerate(shown if several else [])
    ]
    lines.append(Line(name="all classes", color=0, points=_precision_recall(analysis.curve)))
    left_out = sum(curve.objects > 0 for curve in analysis.class_curves) - len(shown)
    more = f"; the {len(shown)} classes with most objects" if left_out > 0 else ""
    unit = (0.0, 1.0)
    first = PageChart(
        svg=line_chart(
            lines, x_label="recall", y_label="precision", title="precision over recall", x_range=unit, y_range=unit
        ),
        caption=f"Precision over recall at IoU 0.5{more}",
        lines=lines,
    )
    values = zip(("precision", "recall", "F1"), analysis.curve.on_grid(_GRID), strict=True)
    judged = int((analysis.curve.score.max(initial=0.0) >= _GRID).sum())  # above it nothing is found
    over = [
        Line(name=name, color=number, points=list(zip(_GRID[:judged].tolist(), column[:judged].tolist(), strict=True)))
        for number, (name, column) in enumerate(values)
    ]
    best = analysis.threshold
    second = PageChart(
        svg=line_chart(
            over,
            x_label="score threshold",
            y_label="value",
            title="precision, recall and F1 over the score threshold",
            x_range=unit,
            y_range=unit,
            mark=(best, f"highest F1: {best:.2f}"),
        ),
        caption="All objects together, each counted once",
        lines=over,
    )
    return [first, second]


def _precision_recall(curve: ThresholdCurve) -> list[tuple[float, float]]:
    precision = curve.interpolated(_GRID)
    reached = int((curve.recall.max(initial=0.0) + 1e-9 >= _GRID).sum())
    return list(zip(_GRID[:reached].tolist(), precision[:reached].tolist(), strict=True))
