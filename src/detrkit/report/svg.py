"""Charts as inline SVG: lines, bars and a diagonal, in the colours of the page, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

__all__ = ["Line", "bar_chart", "line_chart", "reliability_chart"]

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 26, 40
_LINES = 10  # colours of lines in the style of the page: .line0 … .line9
_MOST_POINTS = 400
_NAME = 14  # characters of a name beside a bar


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart: points (x, y), its name, its colour among those of the page, and whether it stands out."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    strong: bool = True


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    title: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """Lines over two axes.

    Args:
        lines: drawn in this order.
        x_label: below the axis.
        y_label: above the axis.
        title: read out by screen readers.
        x_range: ends of the axis; None: those of the points.
        y_range: likewise.
        mark: a vertical line at an x, with its caption.
    """
    lines = [line for line in lines if len(line.points)]
    if not lines:
        return Markup("")
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    frame = _Frame(x_range or _ends(xs), y_range or _ends(ys))
    parts = [frame.axes(x_label, y_label)]
    for line in lines:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in _thinned(line.points))
        weight = "strong" if line.strong else "faint"
        parts.append(
            Markup('<polyline class="line{} {}" points="{}"><title>{}</title></polyline>').format(
                line.color % _LINES, weight, path, line.name
            )
        )
        if len(line.points) == 1:
            (x, y), *_ = line.points
            parts.append(
                Markup('<circle class="dot{}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(
                    line.color % _LINES, frame.x(x), frame.y(y)
                )
            )
    if mark is not None:
        parts.append(frame.mark(*mark))
    return _svg(parts, title)


def bar_chart(
    bars: Sequence[tuple[str, float, str]], *, title: str, most: float | None = None, room: float = 70
) -> Markup:
    """Horizontal bars: (name, value, text at its end), which has ``room`` beside the longest one."""
    if not bars:
        return Markup("")
    longest = max((value for _, value, _ in bars), default=0.0) if most is None else most
    step, left = 26, 92
    parts = []
    for number, (name, value, text) in enumerate(bars):
        top = 8 + step * number
        width = 0.0 if longest <= 0 else (_WIDTH - left - room) * max(0.0, value) / longest
        parts.append(
            Markup(
                '<text class="name" x="{}" y="{}">{}</text><rect class="bar" x="{}" y="{}" width="{:.1f}" height="16"/>'
                '<text class="value" x="{:.1f}" y="{}">{}</text>'
            ).format(
                left - 8,
                top + 13,
                name if len(name) <= _NAME else name[: _NAME - 1] + "…",
                left,
                top,
                max(1.0, width),
                left + width + 6,
                top + 13,
                text,
            )
        )
    return _svg(parts, title, height=16 + step * len(bars))


def reliability_chart(edges: Sequence[float], right: Sequence[float], count: Sequence[int], *, title: str) -> Markup:
    """A bar for each bin of scores: the share of right detections, beside the diagonal where it should end."""
    frame = _Frame((0.0, 1.0), (0.0, 1.0))
    parts = [frame.axes("score", "share that is right")]
    for low, high, share, number in zip(edges, edges[1:], right, count, strict=False):
        if number:
            x, y = frame.x(low) + 1, frame.y(share)
            parts.append(
                Markup(
                    '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                    "<title>score {:.1f} to {:.1f}: {:.0%} of {} right</title></rect>"
                ).format(x, y, frame.x(high) - x - 1, max(1.0, frame.y(0) - y), low, high, share, number)
            )
    ends = [f"{frame.x(value):.1f},{frame.y(value):.1f}" for value in (0, 1)]
    parts.append(Markup('<polyline class="guide" points="{}"/>').format(" ".join(ends)))
    return _svg(parts, title)


@dataclass(frozen=True)
class _Frame:
    """Two axes."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str) -> Markup:
        parts = []
        for value in _ticks(*self.y_range, 5):
            parts.append(
                Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                    _LEFT, _WIDTH - _RIGHT, self.y(value), self.y(value)
                )
            )
            text = Markup('<text class="tick y" x="{}" y="{:.1f}">{}</text>')
            parts.append(text.format(_LEFT - 6, self.y(value) + 4, _short(value)))
        for value in _ticks(*self.x_range, 6):
            text = Markup('<text class="tick x" x="{:.1f}" y="{}">{}</text>')
            parts.append(text.format(self.x(value), _HEIGHT - _BOTTOM + 16, _short(value)))
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(Markup('<text class="label x" x="{:.1f}" y="{}">{}</text>').format(middle, _HEIGHT - 6, x_label))
        parts.append(Markup('<text class="label" x="4" y="14">{}</text>').format(y_label))
        return Markup("").join(parts)

    def mark(self, value: float, caption: str) -> Markup:
        x = self.x(value)
        anchor, gap = ("end", -5) if value > sum(self.x_range) / 2 else ("start", 5)
        return Markup(
            '<line class="mark" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>'
            '<text class="caption" style="text-anchor:{3}" x="{4:.1f}" y="{5}">{6}</text>'
        ).format(x, _TOP - 8, _HEIGHT - _BOTTOM, anchor, x + gap, _TOP - 10, caption)


def _svg(parts: Sequence[Markup], title: str, *, height: int = _HEIGHT) -> Markup:
    opened = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, height, title)
    return opened + Markup("").join(parts) + Markup("</svg>")


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, number: int) -> list[float]:
    """Round numbers between two values."""
    rough = (high - low) / number
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [float(value) for value in np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step]


def _short(value: float) -> str:
    value = 0.0 if abs(value) < 1e-12 else value
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.4g}"


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most some hundred of the points, the first and the last among them."""
    if len(points) <= _MOST_POINTS:
        return points
    places = np.unique(np.linspace(0, len(points) - 1, _MOST_POINTS).round().astype(int))
    return [points[place] for place in places.tolist()]
