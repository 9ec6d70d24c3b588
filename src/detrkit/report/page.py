"""The report of a run: one HTML file with everything in it."""

from __future__ import annotations

import datetime
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detrkit import __version__
from detrkit.files import write_bytes
from detrkit.report.advice import Advice, Evidence, advise
from detrkit.report.analysis import Analysis
from detrkit.report.data_rules import DATA_RULES
from detrkit.report.detection_rules import DETECTION_RULES
from detrkit.report.facts import Facts
from detrkit.report.map_rules import MAP_RULES
from detrkit.report.map_scores import MapScores
from detrkit.report.page_charts import curve_charts, training_charts
from detrkit.report.page_maps import map_class_table, map_findings, map_headline
from detrkit.report.page_tables import (
    ERRORS,
    class_table,
    confusion_table,
    duration_text,
    error_table,
    score_table,
    settings_table,
    three_digits,
)
from detrkit.report.run_log import RunLog
from detrkit.report.svg import bar_chart, reliability_chart
from detrkit.report.thumbnails import MISTAKE_COLORS, ReadImage, thumbnail
from detrkit.report.training_rules import TRAINING_RULES

__all__ = ["RULES", "RunRecord", "render_report", "write_report"]

RULES = (*TRAINING_RULES, *DATA_RULES, *DETECTION_RULES, *MAP_RULES)
"""All rules of "What to do next"."""

NAME = "report.html"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its folder records it.

    Attributes:
        folder: the run folder.
        recipe: its settings, section -> key -> value.
        recipe_text: ``recipe.yaml``.
        log: its log.
        facts: facts about its data; None where it has recorded none.
        analysis: its best evaluation; None where the protocol is not one of objects, or nothing was kept.
        maps: its best evaluation where the protocol is one of maps, panoptic or semantic.
        read: reads a validation image for its picture.
    """

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    log: RunLog
    facts: Facts | None = None
    analysis: Analysis | None = None
    maps: MapScores | None = None
    read: ReadImage | None = None

    @cached_property
    def advice(self) -> list[Advice]:
        """What to do next, the most urgent first."""
        run = shlex.quote(str(self.folder))
        evidence = Evidence(
            run=run, recipe=self.recipe, log=self.log, facts=self.facts, analysis=self.analysis, maps=self.maps
        )
        return advise(evidence, RULES)


def write_report(run: RunRecord, path: Path | None = None) -> Path:
    """Write the report; default: ``report.html`` in the run folder.

    Raises:
        DataError: the file cannot be written.
    """
    target = run.folder / NAME if path is None else path
    write_bytes(target, render_report(run).encode("utf-8"))
    return target


def render_report(run: RunRecord) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("detrkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        lstrip_blocks=False,
    )
    now = datetime.datetime.now().astimezone()
    return environment.get_template("report.html.j2").render(
        title=run.folder.resolve().name,
        subtitle=_subtitle(run),
        headline=_headline(run),
        advice=run.advice,
        training_charts=training_charts(run.log),
        analysis=run.analysis is not None,
        **{"classes": score_table(run.log), "class_bars": None, "confusion": None, **_evaluation(run)},
        settings=settings_table(run.recipe, run.log, run.facts),
        recipe=run.recipe_text,
        commands=_commands(run),
        version=__version__,
        date=f"{now:%Y-%m-%d %H:%M}",
    )


def _subtitle(run: RunRecord) -> str:
    model, data = (run.recipe.get(name) or {} for name in ("model", "data"))
    state = "finished" if run.log.finished else "not finished"
    root = Path(str(data.get("root", "?"))).name
    return f"{model.get('name', '?')} on {root}, {run.log.steps} steps in {duration_text(run.log.seconds)}, {state}"


def _headline(run: RunRecord) -> list[tuple[str, str]]:
    """The numbers at the top: value and what it is."""
    found = run.analysis
    if run.maps is not None:
        rows = map_headline(run.maps)
    elif found is None:
        best, metric = run.log.best, run.log.metric
        rows = [] if best is None or metric is None else [(three_digits(best.scores.get(metric)), metric)]
    else:
        kind = "masks" if found.data.iou_type == "segm" else "boxes"
        rows = [(three_digits(found.score.value), f"{found.score.primary} of {kind}")]
        overall = found.intervals.overall
        if overall is not None:
            rows.append((f"{overall.low:.2f}–{overall.high:.2f}", "95 % interval of AP"))
        rows.append((three_digits(found.score.metrics.get("AP50")), "AP50"))
        rows.append((three_digits(found.curve.at(found.threshold).f1), f"F1 from score {found.threshold:.2f}"))
        rows.append((f"{found.duplicate_rate:.1%}", "duplicates among detections"))
    if run.log.best is not None:
        evaluations = len(run.log.evaluations)
        rows.append((f"{run.log.best.epoch}", f"best epoch, of {evaluations} evaluated"))
    return rows


def _evaluation(run: RunRecord) -> dict[str, Any]:
    """The parts of the page about the best evaluation, as far as the run has kept it."""
    if run.analysis is not None:
        return {"classes": class_table(run.analysis, run.facts), **_findings(run, run.analysis)}
    return {} if run.maps is None else {"classes": map_class_table(run.maps), **map_findings(run.maps)}


def _findings(run: RunRecord, found: Analysis) -> dict[str, Any]:
    """The parts of the page about detections."""
    cost = {name: found.tide.cost.get(kind, 0.0) for kind, name in ERRORS.items()}
    bars = [(name.split(" and")[0] if name != ERRORS["Both"] else "both", value) for name, value in cost.items()]
    bars.sort(key=lambda bar: -bar[1])
    reliability = found.calibration
    pictures = []
    for worst in found.worst:
        counts = ", ".join(f"{count} {kind}" for kind, count in worst.counts.items())
        uri = None if run.read is None else thumbnail(found.kept, found.mistakes, worst, run.read)
        image = found.data.images[worst.position]
        color = MISTAKE_COLORS[worst.reason]
        pictures.append({"name": image.file_name, "uri": uri, "text": counts, "reason": worst.reason, "color": color})
    return {
        "curve_charts": curve_charts(found),
        "confusion": confusion_table(found.confusion),
        "tide": {
            "svg": bar_chart(
                [(name, value, three_digits(value)) for name, value in bars], title="AP50 that errors cost"
            ),
            "caption": f"How much higher AP50 ({three_digits(found.tide.ap50)}) would be without the errors of a kind "
            "(TIDE)",
            "rows": error_table(found),
        },
        "calibration": {
            "svg": reliability_chart(
                reliability.edges.tolist(),
                reliability.right.tolist(),
                reliability.count.tolist(),
                title="share of right detections by score",
            ),
            "caption": "Calibration: bars below the line are too sure of themselves, bars above too modest; expected "
            f"calibration error {three_digits(reliability.error)} over {int(reliability.count.sum())} detections",
        },
        "duplicates": f"Duplicates: {found.mistakes.count('duplicate')} of {len(found.kept.found)} detections above "
        f"the thresholds ({found.duplicate_rate:.1%}).",
        "worst": {
            "pictures": pictures,
            "colors": list(MISTAKE_COLORS.items()),
            "note": "A missed object costs 1, a wrong detection its score. Detections above the thresholds, coloured "
            "by what is wrong with them; missed objects are dashed.",
        },
    }


def _commands(run: RunRecord) -> list[tuple[str, str]]:
    """What to type to repeat, use and continue the run."""
    folder = shlex.quote(str(run.folder))
    training = run.recipe.get("training") or {}
    length = "iterations" if training.get("iterations") else "epochs"
    longer = int(1.5 * float(training.get(length) or 0)) or "N"
    return [
        ("Repeat it", f"detrkit train {folder}/recipe.yaml training.output={folder}-again"),
        ("Predict", f"detrkit predict IMAGES --model {folder} --out predictions"),
        ("Evaluate", f"detrkit eval {folder}"),
        ("Speed: preparation, network and the rest, images a second", f"detrkit bench {folder} --images IMAGES"),
        ("Continue it for longer", f"detrkit train {folder} --resume training.{length}={longer}"),
        ("Write this report anew", f"detrkit report {folder}"),
    ]
