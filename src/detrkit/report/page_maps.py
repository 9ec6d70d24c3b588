"""The parts of the page about maps, panoptic or semantic: the classes, what their score is made of, and confusion."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from detrkit.report.map_scores import MapScores
from detrkit.report.page_tables import Context, confusion_table, three_digits
from detrkit.report.svg import bar_chart

__all__ = ["map_class_table", "map_findings", "map_headline"]

_BARS = 40  # classes; further ones are in the table alone


def map_headline(maps: MapScores) -> list[tuple[str, str]]:
    """The numbers at the top: value and what it is."""
    return [(three_digits(maps.score.metrics.get(name)), name.replace("_", " of ")) for name in maps.score.headline]


def map_class_table(maps: MapScores) -> Context:
    """One row a class, the worst first, and one of all: its share of the labelled pixels and its numbers."""
    labelled = maps.confusion.counts.sum(axis=1)
    total = max(1, int(labelled.sum()))
    rows = []
    for label, (name, numbers) in enumerate(maps.score.per_class.items()):
        share = f"{labelled[label] / total:.1%}" if maps.score.pixels is not None else "–"
        rows.append([name, share, *(three_digits(numbers.get(column)) for column in maps.columns)])
    rows.sort(key=lambda row: (row[2] == "–", row[2]))
    means = {"IoU": "mIoU", "Acc": "mAcc"}
    whole = [maps.score.metrics.get(means.get(column, column)) for column in maps.columns]
    rows.append(["all", "", *map(three_digits, whole)])
    notes = ["Share: of the labelled pixels. The last row is the mean over the classes."]
    if "SQ" in maps.columns:
        notes.append(
            "PQ is SQ x RQ: how well matched segments fit, times how many segments are matched (as F1). A low SQ asks "
            "for finer borders, a low RQ for segments that are missed, made up, or of another class."
        )
    return {"columns": ["class", "share of pixels", *maps.columns], "rows": rows, "notes": notes}


def map_findings(maps: MapScores) -> dict[str, Any]:
    """Bars of the classes, and the confusion of their pixels."""
    return {"class_bars": {"svg": _bars(maps), "caption": _caption(maps)}, "confusion": confusion_table(maps.confusion)}


def _bars(maps: MapScores) -> Markup:
    first = maps.columns[0]
    known = [(name, row) for name, row in maps.score.per_class.items() if row.get(first) is not None]
    known.sort(key=lambda item: item[1][first] or 0.0)
    bars = [(name, row[first] or 0.0, _text(row, maps.columns)) for name, row in known[:_BARS]]
    return bar_chart(bars, title=f"{first} of each class", most=1.0, room=130 if "SQ" in maps.columns else 50)


def _text(row: Any, columns: tuple[str, ...]) -> str:
    value = three_digits(row.get(columns[0]))
    if "SQ" not in columns:
        return value
    return f"{value} = {row['SQ'] or 0.0:.2f} x {row['RQ'] or 0.0:.2f}"


def _caption(maps: MapScores) -> str:
    first, classes = maps.columns[0], len(maps.score.per_class)
    shown = f"{first} of the {_BARS} worst classes" if classes > _BARS else f"{first} of each class"
    return f"{shown}, the worst first" + (": PQ = SQ x RQ" if "SQ" in maps.columns else "")
