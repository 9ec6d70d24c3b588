"""The tables of the page: classes, confusion, errors, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from detrkit.report.analysis import Analysis
from detrkit.report.best_threshold import FEWEST_OBJECTS
from detrkit.report.confusion import Confusion, short_count
from detrkit.report.facts import Facts
from detrkit.report.intervals import Interval
from detrkit.report.run_log import RunLog

__all__ = [
    "ERRORS",
    "Context",
    "class_table",
    "confusion_table",
    "duration_text",
    "error_table",
    "score_table",
    "settings_table",
    "three_digits",
]

Context = dict[str, Any]

_MATRIX = 25  # classes of a confusion matrix that is shown whole
_PAIRS = 30

ERRORS = {
    "Cls": "wrong class",
    "Loc": "loose box",
    "Both": "wrong class and loose box",
    "Dupe": "duplicate",
    "Bkg": "nothing there",
    "Miss": "missed",
}
"""The kinds of TIDE in words."""


def three_digits(value: float | None) -> str:
    """A fraction with three digits, as ``detrkit eval`` prints it."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def duration_text(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def class_table(analysis: Analysis, facts: Facts | None) -> Context:
    """One row a class, the worst AP first: AP with its interval, threshold, and what is found with it."""
    counts = {} if facts is None else facts.train.classes
    column = "AR" + str(analysis.limit)
    columns = ["class", *(["training boxes"] if counts else []), "objects", "AP", "95 % interval", "AP50"]
    has_recall = all(column in row for row in analysis.score.per_class.values())
    columns += [*([column] if has_recall else []), "threshold", "precision", "recall", "F1"]
    rows = []
    for label, name in enumerate(analysis.data.class_names):
        scores, curve = analysis.score.per_class.get(name, {}), analysis.class_curves[label]
        least = float(analysis.thresholds[label])
        quality = curve.at(least)
        rows.append(
            [
                name,
                *([_count(counts.get(name))] if counts else []),
                _count(curve.objects),
                three_digits(scores.get("AP")),
                _interval(analysis.intervals.per_class[label]),
                three_digits(scores.get("AP50")),
                *([three_digits(scores.get(column))] if has_recall else []),
                f"{least:.2f}" + ("" if curve.objects >= FEWEST_OBJECTS else " *"),
                *(three_digits(value) if curve.objects else "–" for value in quality),
            ]
        )
    place = columns.index("AP")
    rows.sort(key=lambda row: (row[place] == "–", row[place]))
    whole, scores = analysis.curve, analysis.score.metrics
    total = sum(counts.values()) if counts else 0
    rows.append(
        [
            "all",
            *([_count(total)] if counts else []),
            _count(whole.objects),
            three_digits(scores.get("AP")),
            _interval(analysis.intervals.overall),
            three_digits(scores.get("AP50")),
            *([three_digits(scores.get(column))] if has_recall else []),
            f"{analysis.threshold:.2f}",
            *(three_digits(value) for value in whole.at(analysis.threshold)),
        ]
    )
    notes = [
        "Intervals: what AP may be on other images of the same kind (bootstrap over images). Thresholds: the score of "
        "the highest F1 at IoU 0.5; predictions use them by default."
    ]
    if any(curve.objects < FEWEST_OBJECTS for curve in analysis.class_curves):
        notes.append(f"* fewer than {FEWEST_OBJECTS} objects: the threshold of all classes is used.")
    return {"columns": columns, "rows": rows, "notes": notes}


_CONFUSION_NOTES = {
    "objects": "At the thresholds of the classes, and IoU 0.5. Below the number of objects its share of the row. Last "
    "row: found where nothing is labelled; last column: missed.",
    "pixels": "Labelled pixels, as they are found. Below their number its share of the row. Last column: found as no "
    "class.",
}


def confusion_table(confusion: Confusion) -> Context:
    """The confusion matrix, or for many classes its largest entries."""
    names, last = confusion.names, len(confusion.names) - 1
    if last <= _MATRIX:
        counts, shares = confusion.counts.tolist(), confusion.shares.tolist()
        rows = [
            (name, [_cell(*pair) for pair in zip(counts[row], shares[row], strict=True)])
            for row, name in enumerate(names)
            if row < last or confusion.of == "objects"
        ]
        if confusion.of == "objects":
            rows[last][1][last] = {"count": "", "share": 0.0, "text": ""}
        return {"what": confusion.of, "note": _CONFUSION_NOTES[confusion.of], "names": names, "rows": rows, "pairs": []}
    counts = confusion.counts.copy()
    np.fill_diagonal(counts, 0)
    counts[-1] = counts[:, -1] = 0
    order = np.argsort(-counts, axis=None)[:_PAIRS]
    places = [divmod(int(place), len(names)) for place in order if counts.flat[place]]
    pairs = [
        [names[row], names[column], short_count(int(counts[row, column])), f"{confusion.shares[row, column]:.0%}"]
        for row, column in places
    ]
    return {
        "what": confusion.of,
        "note": f"The {len(pairs)} most frequent confusions of {len(names) - 1} classes.",
        "rows": [],
        "pairs": pairs,
    }


def _cell(count: int, share: float) -> Context:
    return {"count": short_count(count), "share": share, "text": f"{share:.0%}"}


def error_table(analysis: Analysis) -> list[list[object]]:
    """Kinds of errors by what they cost, as hotcoco's TIDE says."""
    tide = analysis.tide
    kinds = sorted(ERRORS, key=lambda kind: -tide.cost.get(kind, 0.0))
    rows: list[list[object]] = [
        [ERRORS[kind], three_digits(tide.cost.get(kind)), tide.counts.get(kind, 0)] for kind in kinds
    ]
    rows.append(["all false detections", three_digits(tide.cost.get("FP")), ""])
    rows.append(["all missed objects", three_digits(tide.cost.get("FN")), ""])
    return rows


def settings_table(recipe: Mapping[str, Any], log: RunLog, facts: Facts | None) -> list[tuple[str, str]]:
    """What was trained on what, in a few lines."""
    model, data, training = (recipe.get(name) or {} for name in ("model", "data", "training"))
    start = model.get("init")
    rows = [
        ("model", str(model.get("name", "?")) + ("" if facts is None or not facts.parameters else _millions(facts))),
        (
            "started from",
            str(start)
            if start
            else "ImageNet weights of the backbone"
            if model.get("pretrained_backbone")
            else "random weights",
        ),
        ("data", str(data.get("root", "?"))),
    ]
    if facts is not None:
        for name, split in (("training images", facts.train), ("validation images", facts.val)):
            if split is not None:
                rows.append((name, f"{split.images} with {split.objects} objects"))
        if facts.short_side:
            size = "" if facts.train.size is None else f"; the median object has {facts.train.size:.0f} px there"
            rows.append(("image size", f"{facts.short_side} px, longer side up to {facts.max_side} px{size}"))
    elif log.images:
        rows.append(("training images", str(log.images)))
    planned = "" if log.total_steps in (None, log.steps) else f" of {log.total_steps}"
    batch = training.get("batch_size", "?"), training.get("accumulate", 1)
    rows.append(("length", f"{log.steps}{planned} optimizer steps, {batch[0]} images x {batch[1]} each"))
    optimizer, schedule = recipe.get("optimizer") or {}, recipe.get("schedule") or {}
    rates = f"{optimizer.get('lr', '?')}, backbone {optimizer.get('lr_backbone', '?')}"
    rows.append(("learning rate", f"{rates}, {schedule.get('kind', '?')} schedule"))
    rows.append(("seed, precision", f"{training.get('seed', '?')}, {training.get('precision', '?')}"))
    if log.seconds:
        rows.append(("time", duration_text(log.seconds) + (f" on {facts.device}" if facts and facts.device else "")))
    if log.speed:
        rows.append(("training speed", f"{log.speed:.1f} images/s"))
    if log.memory:
        rows.append(("memory", f"{log.memory:.1f} GB at most"))
    if log.best is not None and log.best.seconds and facts is not None and facts.val is not None:
        each = 1000 * log.best.seconds / max(1, facts.val.images)
        rows.append(("evaluation speed", f"{each:.0f} ms an image, with reading and scoring"))
    return rows


def score_table(log: RunLog) -> Context | None:
    """Classes of a run that has kept nothing but its log: the deciding number of each at the best evaluation."""
    if log.best is not None and log.best.per_class:
        rows = sorted(log.best.per_class.items(), key=lambda item: (item[1] is None, item[1]))
        return {
            "columns": ["class", log.metric or "score"],
            "rows": [[name, three_digits(value)] for name, value in rows],
            "notes": [],
        }
    return None


def _millions(facts: Facts) -> str:
    text = f", {(facts.parameters or 0) / 1e6:.1f} million parameters"
    return text + (f", {facts.queries} queries" if facts.queries else "")


def _interval(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.low:.3f} – {interval.high:.3f}"


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)
